"""`open_logits`: every format gives the array that was written; parts that do not fit and damage are said in words."""

from __future__ import annotations

import doctest
import importlib.util
import io
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastce
from fastce._cli import _work, main
from fastce._files import sources
from files import Array, safetensors, write_safetensors

N, C = 500, 31


def needs(package: str) -> Any:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"needs the package {package}")


@pytest.fixture
def x(rng: np.random.Generator) -> Array:
    return (rng.standard_normal((N, C)) * 3).astype(np.float32)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; slabs of some rows, and maps that are replaced often."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "SLAB_BYTES", 40 * C * 4)
    monkeypatch.setattr(sources, "MOST_SLAB_BYTES", 90 * C * 4)
    monkeypatch.setattr(sources, "MAP_BYTES", 5000)
    return tmp_path


def npy(x: Array) -> str:
    np.save("x.npy", x)
    return "x.npy"


def fortran(x: Array) -> str:
    np.save("f.npy", np.asfortranarray(x))
    return "f.npy"


def many_npy(x: Array) -> str:
    """In the order in which people count, some of them empty."""
    for number, (start, stop) in {0: (0, 70), 2: (70, 70), 9: (70, 71), 10: (71, 400), 100: (400, N)}.items():
        np.save(f"part-{number}.npy", x[start:stop])
    return "part-*.npy"


def code(x: Array) -> str:
    """What .safetensors calls a dtype; 16-bit integers stand for bfloat16."""
    return {"float16": "F16", "float32": "F32", "float64": "F64", "uint16": "BF16"}[x.dtype.name]


def one_safetensors(x: Array) -> str:
    write_safetensors(Path("x.safetensors"), odd=("U8", np.zeros(3, np.uint8)), x=(code(x), x))
    return "x.safetensors:x"


def tensors(x: Array) -> str:
    """Two files with an index, the parts of one array under names with numbers."""
    write_safetensors(Path("m-1.safetensors"), **{"l.2": (code(x), x[100:200]), "l.1": (code(x), x[:100])})
    write_safetensors(Path("m-2.safetensors"), **{"l.10": (code(x), x[200:]), "y": ("U8", np.zeros(3, np.uint8))})
    files = {"l.10": "m-2.safetensors", "l.2": "m-1.safetensors", "l.1": "m-1.safetensors", "y": "m-2.safetensors"}
    Path("m.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return "m.safetensors.index.json:l.*"


def zarr_array(x: Array, version: int, chunks: tuple[int, int], **options: Any) -> str:
    import zarr

    options = {"shape": x.shape, "dtype": x.dtype, **options}
    array = zarr.create_array(store="x.zarr", chunks=chunks, zarr_format=version, **options)
    array[...] = x
    return "x.zarr"


def zarr_as_it_is(x: Array, version: int, chunks: tuple[int, int], **options: Any) -> str:
    return zarr_array(x, version, chunks, compressors=None, **options)


def zarr_of_fortran(x: Array) -> str:
    return zarr_as_it_is(x, 2, (50, 7), order="F")


def zarr_of_other_bytes(x: Array) -> str:
    import zarr

    return zarr_as_it_is(x, 3, (50, C), serializer=zarr.codecs.BytesCodec(endian="big"))


def zarr_of_shards(x: Array) -> str:
    return zarr_as_it_is(x, 3, (10, 10), shards=(50, 40))


def zarr_group(x: Array, compressors: Any = "auto") -> str:
    import zarr

    group = zarr.open_group("run", mode="w")
    for name, rows in (("eval/logits", x), ("eval/labels", np.zeros(3))):
        options = {"shape": rows.shape, "chunks": rows.shape, "dtype": rows.dtype, "compressors": compressors}
        group.create_array(name, **options)[...] = rows
    return "run:eval/logits"


def zarr_in_a_group(x: Array) -> str:
    return zarr_group(x).replace(":", "/")


def table(x: Array, kind: str) -> Any:
    import pyarrow as pa

    label = pa.array(np.arange(len(x)))
    if kind == "columns":
        return pa.table({f"class {k}": x[:, k] for k in range(x.shape[1])})
    if kind == "fixed":
        return pa.table({"label": label, "x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])})
    return pa.table({"label": label, "x": pa.array(list(x), pa.list_(pa.from_numpy_dtype(x.dtype)))})


def parquet(x: Array, kind: str) -> str:
    import pyarrow.parquet as pq

    pq.write_table(table(x, kind), f"{kind}.parquet", row_group_size=77)
    return f"{kind}.parquet"


def feather(x: Array) -> str:
    """Compressed, in batches."""
    from pyarrow import feather

    feather.write_feather(table(x, "fixed"), "x.feather", compression="lz4", chunksize=33)
    return "x.feather:x"


def arrow(x: Array, kind: str, compression: str | None) -> str:
    """Batches of rows, the first without any."""
    import pyarrow as pa

    whole = table(x, kind)
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile("x.arrow", "wb") as file, pa.ipc.new_file(file, whole.schema, options=options) as writer:
        writer.write_batch(whole.slice(0, 1).to_batches()[0].slice(0, 0))
        writer.write_table(whole, max_chunksize=200)
    return "x.arrow:class *" if kind == "columns" else "x.arrow:x"


FORMATS: dict[str, Any] = {
    "npy": (npy,),
    "npy of Fortran": (fortran,),
    "npy, many": (many_npy,),
    "safetensors": (one_safetensors,),
    "safetensors, index": (tensors,),
    "Zarr 2, chunks of rows": (zarr_array, "zarr", 2, (16, C)),
    "Zarr 3, small chunks": (zarr_array, "zarr", 3, (7, 10)),
    "Zarr 3, large chunks": (zarr_array, "zarr", 3, (200, 20)),
    "Zarr 2, as it is": (zarr_as_it_is, "zarr", 2, (16, C)),
    "Zarr 3, as it is, small chunks": (zarr_as_it_is, "zarr", 3, (7, 10)),
    "Zarr 3, as it is, all classes": (zarr_as_it_is, "zarr", 3, (70, 40)),
    "Zarr of Fortran": (zarr_of_fortran, "zarr"),
    "Zarr of other bytes": (zarr_of_other_bytes, "zarr"),
    "Zarr of shards": (zarr_of_shards, "zarr"),
    "Zarr, in a group": (zarr_group, "zarr"),
    "Zarr, in a group, as it is": (zarr_group, "zarr", None),
    "Zarr, by its folder": (zarr_in_a_group, "zarr"),
    "Parquet, lists": (parquet, "pyarrow", "lists"),
    "Parquet, lists of one size": (parquet, "pyarrow", "fixed"),
    "Parquet, a column a class": (parquet, "pyarrow", "columns"),
    "Feather": (feather, "pyarrow"),
    "Arrow, lists": (arrow, "pyarrow", "lists", None),
    "Arrow, lists of one size": (arrow, "pyarrow", "fixed", None),
    "Arrow, a column a class": (arrow, "pyarrow", "columns", None),
    "Arrow, compressed": (arrow, "pyarrow", "lists", "zstd"),
}


@pytest.fixture(params=[pytest.param(k, marks=[needs(p) for p in v[1:2]]) for k, v in FORMATS.items()])
def write(request: pytest.FixtureRequest) -> Callable[[Array], str]:
    """Write an array, and return what to open."""
    function, _, *arguments = (*FORMATS[request.param], None)[: max(2, len(FORMATS[request.param]))]
    return lambda x: function(x, *arguments)


INDICES: list[Any] = [
    ...,
    0,
    -1,
    slice(None),
    slice(30, 260),
    slice(490, 7),
    slice(490, 900),
    slice(400, 3, -7),
    (slice(3, 300, 5), slice(2, 9)),
    (-3, slice(None, None, 2)),
    (slice(0, 5), -1),
    (..., 3),
    (17, 4),
]


def test_every_format(write: Callable[[Array], str], x: Array) -> None:
    """Shape, dtype, any piece, in any order; the blocks are all rows in order."""
    logits = fastce.open_logits(write(x))
    assert (logits.shape, logits.dtype, logits.ndim, len(logits)) == ((N, C), np.float32, 2, N)
    assert (logits.size, logits.nbytes) == (x.size, x.nbytes)
    for index in INDICES:
        np.testing.assert_array_equal(logits[index], x[index], str(index))
    for n_bytes in (1, 17 * C * 4, 1 << 30):
        blocks = list(logits.blocks(n_bytes))
        np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), x)
        assert [rows.start for rows, _ in blocks[1:]] == [rows.stop for rows, _ in blocks[:-1]]


def test_from_many_threads(write: Callable[[Array], str], x: Array) -> None:
    """Each reads its own rows, all at once."""
    logits = fastce.open_logits(write(x))
    wrong: list[int] = []

    def read(first: int) -> None:
        runs = [slice(start, start + 15) for start in range(first, N, 60)]
        wrong.extend(rows.start for rows in runs if not np.array_equal(logits[rows], x[rows]))

    threads = [threading.Thread(target=read, args=(15 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_score(
    write: Callable[[Array], str], x: Array, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits from any format, in blocks across parts, chunks and batches; the result of one call."""
    monkeypatch.setattr(_work, "BLOCK_BYTES", 23 * C * 4)
    y = np.arange(N) % C
    np.save("y.npy", y)
    found = []
    for logits in (npy(x), write(x)):
        assert main(["score", logits, "y.npy", "--json", "--output", "losses.npy"]) == 0
        found.append((json.loads(capsys.readouterr().out)["mean_loss"], Path("losses.npy").read_bytes()))
    if not Path("f.npy").exists():  # another class stride, another kernel
        assert found[0] == found[1]
    assert found[1][0] == pytest.approx(fastce.cross_entropy(x, y), rel=1e-6)


def test_score_by_rows(x: Array, capsys: pytest.CaptureFixture[str]) -> None:
    """Parts along the axis of the classes would have to be read as a whole."""
    np.save("y.npy", np.zeros(C, int))
    many_npy(x)
    assert main(["score", "part-*.npy", "y.npy", "--axis", "0"]) == 2
    assert "read by rows, so the class axis cannot be the first" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.float16, np.float64, "bfloat16"])
def test_dtypes(write: Callable[[Array], str], dtype: Any, x: Array) -> None:
    """Those of logits; bfloat16 as the bits that a file holds, where it does not know them itself."""
    if dtype == "bfloat16":
        x = x.astype(ml_dtypes.bfloat16)
        logits = fastce.open_logits(write(x.view(np.uint16)), dtype="bfloat16")
    else:
        x = x.astype(dtype)
        logits = fastce.open_logits(write(x))
    assert logits.dtype == x.dtype
    np.testing.assert_array_equal(logits[...], x)


def test_lists_of_files(x: Array) -> None:
    """In the order given, of any formats, as strings or paths; the tensor for all of them."""
    np.save("b.npy", x[:100])
    write_safetensors(Path("a.safetensors"), x=("F32", x[100:]), y=("F32", x))
    logits = fastce.open_logits(["b.npy", Path("a.safetensors:x")])
    np.testing.assert_array_equal(logits[...], x)
    write_safetensors(Path("b.safetensors"), x=("F32", x[:100]), y=("F32", x))
    logits = fastce.open_logits(["b.safetensors", "a.safetensors"], tensor="x")
    np.testing.assert_array_equal(logits[90:110], x[90:110])
    assert logits.files == ("b.safetensors", "a.safetensors")
    assert fastce.open_logits(Path("b.npy")).shape == (100, C)
    np.testing.assert_array_equal(fastce.open_logits("[ab].npy")[...], x[:100])


def test_it_is_no_array(x: Array) -> None:
    """Nothing reads all of it unasked."""
    logits = fastce.open_logits(npy(x))
    for use in (
        np.asarray,
        list,
        lambda a: fastce.cross_entropy(a, np.zeros(N, int)),
        lambda a: a["x"],
        lambda a: a[[1]],
    ):
        with pytest.raises(TypeError, match="logits"):
            use(logits)
    with pytest.raises(ValueError, match="read-only"):
        logits[:2][0, 0] = 1
    assert repr(logits) == "<StoredLogits 'x.npy': (500, 31), float32>"
    with pytest.raises(TypeError, match='dtype: expected "bfloat16"'):
        fastce.open_logits("x.npy", dtype="float8")
    assert fastce.open_logits(Path("x.npy"), dtype=None).dtype == np.float32


PARTS: dict[str, tuple[Any, Any, str]] = {
    "classes": (np.zeros((2, 3)), np.zeros((2, 4)), r"a.npy and b.npy: another shape of a row: \(3,\) and \(4,\)"),
    "dtype": (np.zeros((2, 3)), np.zeros((2, 3), "f4"), "a.npy and b.npy: another dtype: float64 and float32"),
    "byte order": (np.zeros((2, 3), "<f4"), np.zeros((2, 3), ">f4"), "a.npy and b.npy: another byte order"),
    "axes": (np.zeros((2, 3)), np.zeros(2), "a.npy and b.npy: another number of axes: 2 and 1"),
    "numbers": (np.zeros(()), np.zeros(()), "single number"),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_that_do_not_fit(name: str) -> None:
    """Both files are named."""
    first, second, message = PARTS[name]
    np.save("a.npy", first)
    np.save("b.npy", second)
    for files in (["a.npy", "b.npy"], "?.npy"):
        with pytest.raises(ValueError, match=message):
            fastce.open_logits(files)


def index(weight_map: Any) -> bytes:
    return json.dumps({"weight_map": weight_map}).encode()


BAD_INDEX: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not valid JSON"),
    "a list": (b"[]", "not a JSON object"),
    "nested deep": (b"[" * 100_000, "not valid JSON"),
    "a name twice": (b'{"weight_map": {"x": "m.safetensors", "x": "m.safetensors"}}', "a name occurs twice"),
    "no map": (b'{"metadata": {}}', "expected an object weight_map"),
    "a map of numbers": (index({"x": 3}), "expected an object weight_map"),
    "nothing": (index({}), "it has none"),
    "another tensor": (index({"z": "m.safetensors", "y": "m.safetensors"}), "say which tensor.*'z', 'y'"),
    "a file elsewhere": (index({"x": "../m.safetensors"}), "not the name of a .safetensors file beside it"),
    "an absolute name": (index({"x": "/etc/m.safetensors"}), "not the name of a .safetensors file beside it"),
    "another kind of file": (index({"x": "m.npy"}), "not the name of a .safetensors file beside it"),
    "no file": (index({"x": "none.safetensors"}), "none.safetensors"),
    "not in its file": (index({"y": "m.safetensors"}), "tensor 'y' is not in m.safetensors"),
    "the metadata": (index({"__metadata__": "m.safetensors"}), "is not in m.safetensors"),
    "a damaged file": (index({"x": "bad.safetensors"}), "bad.safetensors: its header is not valid JSON"),
}


@pytest.mark.parametrize("name", BAD_INDEX)
def test_bad_index(name: str) -> None:
    content, message = BAD_INDEX[name]
    write_safetensors(Path("m.safetensors"), x=("F32", np.zeros((2, 3), np.float32)))
    Path("bad.safetensors").write_bytes(safetensors(b"{"))
    Path("m.safetensors.index.json").write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message):
        fastce.open_logits("m.safetensors.index.json")


def test_names_that_lead_nowhere() -> None:
    for files, message in (
        ("none-*.npy", r"none-\*.npy: no file has such a name"),
        ([], "expected a file at least"),
        ("x.txt", "expected a file named"),
        (".", "expected a file named"),
    ):
        with pytest.raises(ValueError, match=message):
            fastce.open_logits(files)
    for name in ("none.zarr", "none.parquet", "none.arrow", "none.npy"):
        with pytest.raises((OSError, ImportError)):
            fastce.open_logits(name)


def test_a_file_that_changes_while_it_is_read(x: Array) -> None:
    """Is noticed when the next map is made."""
    logits = fastce.open_logits(npy(x))
    logits[:300]
    os.utime("x.npy", ns=(1, 1))
    with pytest.raises(ValueError, match="x.npy: was changed while it was being read"):
        logits[300:]


@pytest.mark.parametrize(("package", "name"), [("zarr", "x.zarr"), ("pyarrow", "x.parquet"), ("pyarrow", "x.arrow")])
def test_a_package_that_is_missing(
    package: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The extra that brings it is said; on the command line, status 2."""
    monkeypatch.setitem(sys.modules, package, None)
    extra = {"zarr": "zarr", "pyarrow": "arrow"}[package]
    with pytest.raises(ImportError, match=re.escape(f'pip install "fastce[{extra}]"')):
        fastce.open_logits(name)
    assert main(["score", name, "y.npy"]) == 2
    assert f"error: {name}: reading" in capsys.readouterr().err


@needs("pyarrow")
def test_bad_tables(x: Array) -> None:
    """Rows of other lengths, missing rows and numbers, no numbers, no rows, a file cut short."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists: Any = [row.tolist() for row in x[:100]]
    cases: dict[str, tuple[Any, str]] = {
        "ragged": ([*lists[:70], lists[0][:5], *lists[71:]], "row 70 has 5 numbers, the first has 31"),
        "no row": ([*lists[:70], None, *lists[71:]], r"row 70 is missing \(null\)"),
        "no number": ([*lists[:70], [*lists[0][:5], None, *lists[0][6:]]], r"a number of row 70 is missing \(null\)"),
        "text": (["a", "b"], "string does not hold numbers"),
        "lists of text": ([["a"], ["b"]], "does not hold numbers"),
    }
    for name, (column, message) in cases.items():
        pq.write_table(pa.table({"x": column}), "bad.parquet", row_group_size=30)
        with pytest.raises(ValueError, match=f"^bad.parquet.*{message}"):
            fastce.open_logits("bad.parquet")[...]
        assert name
    two = pa.table({"a": lists, "b": lists, "c": list(range(100)), "d": ["text"] * 100})
    pq.write_table(two, "two.parquet")
    for wanted, message in ((None, "say which column.*'a', 'b'"), ("z", "no column 'z'"), ("*", "say which column")):
        with pytest.raises(ValueError, match=message):
            fastce.open_logits("two.parquet", tensor=wanted)
    np.testing.assert_array_equal(fastce.open_logits("two.parquet:c")[5:8], [5, 6, 7])
    content = Path("two.parquet").read_bytes()
    for damaged in (content[:100], content[:-50], b"", b"PAR1" * 9, content[50:]):
        for name in ("cut.parquet", "cut.arrow"):
            Path(name).write_bytes(damaged)
            with pytest.raises(ValueError, match="^cut"):
                fastce.open_logits(f"{name}:a")[...]
    pq.write_table(pa.table({"x": pa.array([], pa.list_(pa.float32(), 3))}), "none.parquet")
    assert fastce.open_logits("none.parquet")[...].shape == (0, 3)


def test_pieces_stay_as_they_are(write: Callable[[Array], str], x: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever keeps pieces keeps what was in them, whatever is read later into memory that is used again."""
    monkeypatch.setattr(sources, "SLAB_BYTES", 1000)
    monkeypatch.setattr(sources, "MOST_SLAB_BYTES", 4000)
    logits = fastce.open_logits(write(x))
    kept = [logits[i : i + 20] for i in range(0, N, 20)]
    parts = [logits[i : i + 20][3, 2:] for i in range(0, N - 20, 20)]
    np.testing.assert_array_equal(np.concatenate(kept), x)
    np.testing.assert_array_equal(parts, x[3 : N - 17 : 20, 2:][: len(parts)])


@needs("zarr")
def test_chunks_that_are_not_there(x: Array) -> None:
    """A chunk without a file is all fill value; one of another size is damaged."""
    logits = fastce.open_logits(zarr_as_it_is(x, 3, (100, 20), fill_value=7.0))
    Path("x.zarr/c/1/0").unlink()
    with_hole = x.copy()
    with_hole[100:200, :20] = 7
    for rows in (slice(None), slice(100, 200), slice(150, 160)):
        np.testing.assert_array_equal(logits[rows], with_hole[rows])
    logits = fastce.open_logits(zarr_as_it_is(x, 2, (100, C), fill_value=7.0, overwrite=True))
    Path("x.zarr/1.0").unlink()
    np.testing.assert_array_equal(logits[120:130], np.full((10, C), 7, x.dtype))
    with Path("x.zarr/0.0").open("r+b") as file:
        file.truncate(99)
    for rows in (slice(5, 9), slice(50, 150)):
        with pytest.raises(ValueError, match=r"x\.zarr: .*0\.0: .* expected a chunk of \d+ bytes, got 99"):
            logits[rows]


@needs("zarr")
def test_reads_that_give_less(x: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """As reads of more than 2 GiB do."""

    class Short(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            return super().readinto(memoryview(buffer)[:1000])

    logits = fastce.open_logits(zarr_as_it_is(x, 3, (100, C)))
    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Short(path))
    np.testing.assert_array_equal(logits[50:350], x[50:350])


@needs("zarr")
def test_bad_zarr(x: Array) -> None:
    """Metadata that are none, chunks that cannot be decoded, no array, no numbers."""
    import zarr

    zarr_array(x, 3, (100, C))
    chunk = next(path for path in Path("x.zarr/c").rglob("*") if path.is_file())
    chunk.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"x\.zarr: rows .* cannot be decoded"):
        fastce.open_logits("x.zarr")[...]
    for content in (b"", b"{}", b"[]", b'{"zarr_format": 3, "node_type": "array"}', b"\xff"):
        Path("x.zarr/zarr.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"^x\.zarr: "):
            fastce.open_logits("x.zarr")
    zarr.create_array(store="one.zarr", shape=(), dtype="f4")
    with pytest.raises(ValueError, match="single number"):
        fastce.open_logits("one.zarr")
    with pytest.raises(ValueError, match="holds one array and no tensor 'b'"):
        fastce.open_logits("one.zarr:b")
    zarr_group(x)
    with pytest.raises(ValueError, match="run: no tensor 'z'"):
        fastce.open_logits("run:z")
    Path("file.zarr").write_text("x")
    with pytest.raises(ValueError, match="expected a folder"):
        fastce.open_logits("file.zarr")


def test_the_document() -> None:
    """The examples of docs/files.md, in one session."""
    text = Path(__file__).parent.with_name("docs").joinpath("files.md").read_text(encoding="utf-8")
    test = doctest.DocTestParser().get_doctest(text, {}, "docs/files.md", None, None)
    assert len(test.examples) > 20
    said: list[str] = []
    doctest.DocTestRunner().run(test, out=said.append)
    assert not said, "".join(said)
