"""Parquet files that unpack to far more than their size: read once a value, or refused by name."""

from __future__ import annotations

import base64
import io
import random
import resource
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

from adcam.errors import AdcamError  # noqa: E402
from adcam.limits import use_limits  # noqa: E402
from adcam.parquet import read_batches, read_columns, read_group  # noqa: E402
from adcam.parquet_pages import RowGroup, measure_pages, read_row_groups  # noqa: E402

MIB = 1 << 20


def write(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def repeated(value: bytes, times: int) -> Any:
    """A column that stands for a value many times and holds it once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), pa.array([value]))


def bombs(root: Path) -> dict[str, str]:
    """Files of some kilobytes, by what makes them large; each stands for 3 GB or more."""
    many = pa.DictionaryArray.from_arrays(
        pa.array([0] * 3000, pa.int32()), pa.array(["x" * MIB], pa.string())
    )
    count = 30_000_000
    lists = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), pa.nulls(count, pa.int8()))
    zeros = pa.array([b"\0" * (24 * MIB)] * 2 + [b"\1" + b"\0" * (24 * MIB)])
    return {
        "texts": write(root / "texts.parquet", {"id": many}),
        "bytes": write(root / "bytes.parquet", {"id": repeated(b"x" * MIB, 3000)}),
        "one row": write(
            root / "row.parquet",
            {"id": pa.ListArray.from_arrays(pa.array([0, 3000], pa.int32()), many)},
        ),
        "numbers": write(root / "numbers.parquet", {"id": lists}),
        "pages": write(
            root / "pages.parquet", {"id": zeros}, compression="zstd", use_dictionary=False
        ),
    }


SCRIPT = """
import re, sys
from pathlib import Path
import pyarrow.parquet
from adcam.errors import AdcamError
from adcam.parquet import read_columns, read_group, read_batches
def read_peak():
    # Not ru_maxrss, which begins with the memory of the process that started this one.
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
before = read_peak()
try:
    if sys.argv[2] == "columns":
        cells = read_columns(sys.argv[1], ["id"])["id"]
    elif sys.argv[2] == "group":
        cells = read_group(sys.argv[1], 0, "id")
    else:
        cells = [cell for batch in read_batches(sys.argv[1], ["id"], 100) for cell in batch["id"]]
    print("read", len(cells))
except AdcamError as error:
    print("refused", error)
print((read_peak() - before) >> 10)
"""


@pytest.mark.parametrize("how", ["columns", "group", "batches"])
def test_bombs_stay_small_in_a_process_of_little_memory(tmp_path: Path, how: str) -> None:
    """What repeats is read and kept once; what cannot be is refused with the limit's name."""
    for name, path in bombs(tmp_path).items():
        assert Path(path).stat().st_size < 60_000
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, path, how],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": ":".join(sys.path), "ADCAM_MAX_FILE_BYTES": str(32 * MIB)},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)),
        )
        assert done.returncode == 0, (name, done.stderr)
        said, grown = done.stdout.splitlines()
        if name in ("numbers", "pages"):
            assert said.startswith(f"refused {path}: reading 'id' takes at least "), name
            assert said.endswith("the limit is 33,554,432; --limits file_bytes=… raises it")
        else:
            assert said == ("read 1" if name == "one row" else "read 3000"), name
        assert int(grown) < 70, (name, grown)  # measured 60


def test_a_footer_that_lies_changes_nothing(tmp_path: Path) -> None:
    """The sizes that count stand before the pages, where the decoder reads them."""
    path = tmp_path / "lies.parquet"
    write(path, {"id": [b"\0" * MIB]}, compression="zstd", use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    stated = column.total_uncompressed_size
    data = path.read_bytes()

    def varint(value: int) -> bytes:
        value, out = value << 1, b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    true, lie = varint(stated), varint(stated)[:-1] + b"\x00"
    footer = data.rindex(b"PAR1") - 4 - int.from_bytes(data[-8:-4], "little")
    path.write_bytes(data[:footer] + data[footer:].replace(true, lie))
    lied = pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size
    assert lied < stated // 10
    with use_limits({"file_bytes": MIB // 2}), pytest.raises(AdcamError, match="file_bytes"):
        read_columns(path, ["id"])


def test_a_group_with_fewer_rows_than_it_states_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", {"id": ["a", "b", "c"]})
    real = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda *a, **b: (x[:2] for x in real(*a, **b))
    )
    with pytest.raises(AdcamError, match=r"a\.parquet: is damaged: it lacks 1 rows"):
        read_columns(path, ["id"])


def test_values_that_repeat_beginnings_are_counted_as_they_are_decoded(tmp_path: Path) -> None:
    texts = ["x" * 100_000 + str(number) for number in range(1000)]  # 100 MB in 100 kB
    options: dict[str, Any] = {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}
    path = write(tmp_path / "delta.parquet", {"id": texts, "list": [[t] for t in texts]}, **options)
    assert read_columns(path, ["id"])["id"] == texts
    with use_limits({"file_bytes": 20 * MIB}):
        for column in ("id", "list"):
            with pytest.raises(AdcamError, match="file_bytes=… raises it"):
                read_columns(path, [column])


def test_the_limit_is_of_what_is_read_at_a_time(tmp_path: Path) -> None:
    cells = [bytes([number]) * 100_000 for number in range(40)]
    table = {"image": cells, "id": [str(number) for number in range(40)]}
    path = write(tmp_path / "a.parquet", table, row_group_size=4, use_dictionary=False)
    with use_limits({"file_bytes": MIB}):
        assert [cell for g in range(10) for cell in read_group(path, g, "image")] == cells
        assert [c for batch in read_batches(path, ["image"], 3) for c in batch["image"]] == cells
        assert read_columns(path, ["id"])["id"] == table["id"]
        with pytest.raises(AdcamError, match="'image' takes at least 4,00"):
            read_columns(path, ["image"])


def test_every_kind_of_column_is_read_as_pyarrow_reads_it(tmp_path: Path) -> None:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        "text": pa.array(["a", None, "b", "a"]),
        "large": pa.array(["a", None, "", "ü"], pa.large_string()),
        "image": pa.array([{"bytes": b"1", "path": None}, None, {"path": "x"}, {}], image),
        "texts": pa.array([["a", None], None, [], ["b", "a"]]),
        "numbers": pa.array([[1, 2], None, [], [None]], pa.large_list(pa.int64())),
        "nested": pa.array([[["a"], []], None, [], [None, ["b"]]]),
        "structs": pa.array([[{"bytes": b"1"}], None, [], [None]], pa.list_(image)),
        "fixed": pa.array([b"ab", None, b"cd", b"ab"], pa.binary(2)),
        "named": pa.array(["a", None, "b", "a"]).dictionary_encode(),
        "truth": pa.array([True, None, False, True]),
        "number": pa.array([1.5, None, 2.5, 0.0]),
    }
    for size in (1, 3, 100):
        for dictionary, rows in ((True, 100), (False, 100), (True, 3)):
            options = {"use_dictionary": dictionary, "row_group_size": rows}
            path = write(tmp_path / "a.parquet", columns, **options)
            for name, column in columns.items():
                batches = list(read_batches(path, [name], size))
                assert [c for batch in batches for c in batch[name]] == column.to_pylist(), name
    assert read_columns(path, list(columns)) == {n: c.to_pylist() for n, c in columns.items()}
    assert read_columns(path, ["image.path"])["image.path"] == [None, None, "x", None]
    with pytest.raises(AdcamError, match=r"a\.parquet: .*there is no column 'gone'"):
        read_columns(path, ["gone"])


def test_pages_of_indices_and_pages_of_values_in_one_column(tmp_path: Path) -> None:
    """A writer changes from the first to the second when there are too many different values."""
    cells = [random.Random(number).randbytes(150_000) for number in range(20)]
    structs = [{"bytes": cell, "path": str(number)} for number, cell in enumerate(cells)]
    columns = {"flat": cells, "image": structs, "list": [[cell, cell] for cell in cells]}
    path = write(tmp_path / "a.parquet", columns)
    assert "PLAIN" in pq.ParquetFile(path).metadata.row_group(0).column(0).encodings
    assert read_columns(path, list(columns)) == columns
    assert read_group(path, 0, "image.bytes") == cells


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
def test_pages_are_measured_as_the_footer_of_an_honest_file_says(
    tmp_path: Path, version: str, compression: str
) -> None:
    values = [f"value {number}" for number in range(5000)]
    path = write(
        tmp_path / "a.parquet",
        {"a": values},
        compression=compression,
        data_page_version=version,
        data_page_size=4000,
    )
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    with Path(path).open("rb") as file:
        sizes = measure_pages(file, column.dictionary_page_offset, column.total_compressed_size)
        assert sizes.values == 5000
        # The footer counts the headers, too.
        assert 0.9 < sizes.unpacked / column.total_uncompressed_size <= 1
        with pytest.raises(ValueError, match="header of a page"):
            measure_pages(file, 0, column.total_compressed_size)
        start, size = column.dictionary_page_offset, column.total_compressed_size
        assert read_row_groups(file) == [RowGroup(5000, ((start, size),))]


ABORTS = (
    "c-l>mKMTS@48?P?oE=;oa@@fUMQBk_QK90{#l@+EICm*>px~d{R_&+rvl)wmLtX;!NAj{=@8$$Fpuw1s2T9T"
    "{VJI3cntmSuu&q`*g0&&fq%mk&?GNsp6GDtya3`52?8lz=PRFWdgL)zAt~<H2yVN11mTiT`8XJM7o(UzGmB?"
    "HChY=GhQ(5FEe=&^ZXuvBIg`)_;Y`)1D#mH9~41*#sZ+BNu_C+zt%kugR9<Hp8*GsTiPG{4(v7h@dt}Xxk1{"
    "|*_@&"
)
"""A file of one row whose footer contradicts itself: `RowGroupMetaData.column` of pyarrow 26.0.1
ends the process there, since a C++ exception leaves it."""


def test_a_footer_that_ends_pyarrow_is_told_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(zlib.decompress(base64.b85decode(ABORTS)))
    code = f"from adcam.parquet import read_table; read_table({str(path)!r}, ['a'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr  # -6 is SIGABRT
    assert "AdcamError" in done.stderr and "a.parquet: cannot be read" in done.stderr


def test_an_error_of_pyarrow_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1xxxx\x04\x00\x00\x00PAR1")
    with pytest.raises(AdcamError, match=r"a\.parquet: cannot be read \(.*\)$") as caught:
        read_columns(path, ["a"])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "footer",
    [b"\x49\xfc" + b"\xff" * 7 + b"\x7f", b"\x49\xf7" + b"\xff" * 7 + b"\x7f", b"\x19" * 5000],
    ids=["structures without end", "numbers without end", "depth"],
)
def test_a_footer_without_end_is_refused(footer: bytes) -> None:
    file = io.BytesIO(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(ValueError, match=r"ends within|too deeply"):
        read_row_groups(file)
