"""What a run found, for people: report.json, report.md with pictures, and one-file report.html."""
