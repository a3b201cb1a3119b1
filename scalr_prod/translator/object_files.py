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
from scalr_prod.errors import ComputeError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from pyarrow.fs import FileSystem

    from scalr_prod.compute import ShuffleFolder


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


class PackedFile(NamedTuple):
    """A file with a packed object.

    Attributes:
        path: Its path, relative to the folder.
        sha256: Checksum of its content: to unpickle what others may write is to run their code.
    """

    path: str
    sha256: str


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

    def write(self, value: Any) -> PackedFile:
        """Pack an object into files, and return the one to read it from."""
        content = pickle.dumps(self.pack(value))
        return PackedFile(self._write(memoryview(content)), hashlib.sha256(content).hexdigest())

    def _write(self, content: memoryview) -> str:
        digest = hashlib.sha256()
        for chunk in _chunks(content):
            digest.update(chunk)
        key = digest.digest()
        if key not in self._paths:
            path = self._folder.new_path(".bin")
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
        self._objects: dict[PackedFile, Any] = {}

    def read(self, packed_file: PackedFile) -> Any:
        """Return the object that `ObjectWriter.write` wrote: the same one for each call until `forget`.

        Raises:
            ComputeError: The file's content is not what was written.
        """
        if packed_file not in self._objects:
            with self._folder.open().open_input_stream(packed_file.path) as file:
                content = file.read()
            if hashlib.sha256(content).hexdigest() != packed_file.sha256:
                raise ComputeError(
                    "this file was changed while a training used it",
                    where=packed_file.path,
                    next_step="check who may write to the lake, then run the command again",
                )
            self._objects[packed_file] = self.unpack(pickle.loads(content))  # noqa: S301 - the driver told its checksum
        return self._objects[packed_file]

    def unpack(self, packed: PackedObject) -> Any:
        """Return a packed object."""
        return pickle.loads(packed.pickled, buffers=list(map(self._map_buffer, packed.buffers)))  # noqa: S301 - from a checked file, or a result

    def forget(self, packed_files: Iterable[PackedFile]) -> None:
        """Drop objects that `read` returned."""
        for packed_file in packed_files:
            self._objects.pop(packed_file, None)

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
