# SPDX-License-Identifier: Apache-2.0
"""Objects of large arrays on their way between processes that share only a folder or an object store.

An object is pickled without the bytes of its large arrays and tensors. Each of those is a file, which the reader maps into memory, so that
it takes disk rather than memory. Arrays and tensors begin at the start of a page there: the rounding of a product may depend on the
alignment.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakValueDictionary

import torch

from scalr_prod.core.memmap import drop_pages, map_bytes

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from pyarrow.fs import FileSystem

    from scalr_prod.compute import ShuffleFolder

__all__ = ["ObjectReader", "ObjectWriter", "PackedObject"]

#: Smaller arrays stay in the pickle.
_MIN_FILE_BYTES: Final = 1 << 20
_CHUNK_BYTES: Final = 8 << 20
_BUFFER_BYTES: Final = 1 << 20
#: Alignment of torch's own memory.
_ALIGNMENT: Final = 64


class PackedBuffer(NamedTuple):
    """The bytes of a large array.

    Attributes:
        path: Its file, relative to the folder.
        writable: Whether the array may be changed.
    """

    path: str
    writable: bool


class PackedObject(NamedTuple):
    """An object without the bytes of its large arrays.

    Attributes:
        pickled: The object.
        buffers: Its large arrays.
    """

    pickled: bytes
    buffers: tuple[PackedBuffer, ...]


class ObjectWriter:
    """Packs objects; equal arrays are written once.

    Args:
        folder: Folder of the files.
    """

    def __init__(self, folder: ShuffleFolder) -> None:
        self._folder = folder
        self._paths: dict[bytes, str] = {}

    def pack(self, value: Any) -> PackedObject:
        """Pack an object that can be pickled, and write its large arrays."""
        large: list[pickle.PickleBuffer] = []

        def stays_in_pickle(buffer: pickle.PickleBuffer) -> bool:
            is_small = buffer.raw().nbytes < _MIN_FILE_BYTES
            if not is_small:
                large.append(buffer)
            return is_small

        pickled = io.BytesIO()
        _Pickler(pickled, pickle.HIGHEST_PROTOCOL, buffer_callback=stays_in_pickle).dump(value)
        raw = [buffer.raw() for buffer in large]
        return PackedObject(pickled.getvalue(), tuple(PackedBuffer(self._write(one), not one.readonly) for one in raw))

    def write(self, value: Any) -> str:
        """Pack an object into files, and return the path of the one to read it from."""
        return self._write(memoryview(pickle.dumps(self.pack(value))))

    def _write(self, content: memoryview) -> str:
        digest = hashlib.sha256()
        for chunk in _chunks(content):
            digest.update(chunk)
        key = digest.digest()
        if key not in self._paths:
            path = self._folder.new_path(".bin")
            # Buffered, since the Delta library's streams take nothing but bytes.
            with self._folder.open().open_output_stream(path, compression=None, buffer_size=_BUFFER_BYTES) as file:
                for chunk in _chunks(content):
                    file.write(chunk)
            self._paths[key] = path
        return self._paths[key]


class ObjectReader:
    """Reads packed objects; a file is read once and kept in a temporary file, as long as an object uses it.

    Args:
        folder: Folder of the files.
        scratch_dir: Folder for temporary files.
    """

    def __init__(self, folder: ShuffleFolder, scratch_dir: Path | None) -> None:
        self._folder, self._scratch_dir = folder, scratch_dir
        self._buffers: WeakValueDictionary[PackedBuffer, mmap.mmap] = WeakValueDictionary()
        self._objects: dict[str, Any] = {}

    def read(self, path: str) -> Any:
        """Return the object that `ObjectWriter.write` wrote: the same one for each call until `forget`."""
        if path not in self._objects:
            with self._folder.open().open_input_stream(path) as file:
                packed = pickle.loads(file.read())  # noqa: S301 - written by the driver, whose tasks a worker runs as well
            self._objects[path] = self.unpack(packed)
        return self._objects[path]

    def unpack(self, packed: PackedObject) -> Any:
        """Return a packed object."""
        return pickle.loads(packed.pickled, buffers=list(map(self._map_buffer, packed.buffers)))  # noqa: S301 - as above

    def forget(self, paths: Iterable[str]) -> None:
        """Drop objects that `read` returned."""
        for path in paths:
            self._objects.pop(path, None)

    def _map_buffer(self, buffer: PackedBuffer) -> mmap.mmap:
        pages = self._buffers.get(buffer)
        if pages is None:
            chunks = _read_chunks(self._folder.open(), buffer.path)
            pages = self._buffers[buffer] = map_bytes(chunks, self._scratch_dir, writable=buffer.writable)
        return pages


class _Pickler(pickle.Pickler):
    """Pickles tensors of a CPU as arrays, since torch would copy their bytes into the pickle."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is torch.Tensor and value.device.type == "cpu" and value.layout is torch.strided:
            try:
                return _to_tensor, (value.detach().contiguous().numpy(),)
            except TypeError:  # numpy lacks this type
                return NotImplemented
        return NotImplemented


def _to_tensor(array: Any) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def _chunks(content: memoryview) -> Iterator[memoryview]:
    content = content.cast("B") if content.nbytes else content
    for start in range(0, content.nbytes, _CHUNK_BYTES):
        yield content[start : start + _CHUNK_BYTES]
        drop_pages()


def _read_chunks(files: FileSystem, path: str) -> Iterator[bytes]:
    with files.open_input_stream(path, compression=None) as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
