"""Writers of image and record files for tests, independent of the code that reads them."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np


def png(array, **options):
    image = _image()
    out = io.BytesIO()
    image.fromarray(array).save(out, "PNG", **options)
    return out.getvalue()


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _image():
    from PIL import Image

    return Image


def save_folder(folder, x, names, ending="png"):
    """``folder/NAME/00000.png``: a file a row, in the order of the rows."""
    for row, (array, name) in enumerate(zip(x, names, strict=True)):
        path = Path(folder) / name / f"{row:05d}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(array))
    return folder


def tar_bytes(members, **options):
    """An archive of (name or TarInfo, bytes)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as archive:
        for name, raw in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.type == tarfile.REGTYPE:
                info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return out.getvalue()


def varint(value):
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number, payload, wire=2):
    lead = varint(number << 3 | wire)
    return lead + (varint(len(payload)) if wire == 2 else b"") + payload


def feature(value, packed=True):
    """A ``tf.train.Feature`` of bytes, text, an int, or an array of ints or floats."""
    if isinstance(value, bytes | str):
        value = [value.encode() if isinstance(value, str) else value]
    if isinstance(value, list) and all(isinstance(each, bytes) for each in value):
        return field(1, b"".join(field(1, each) for each in value))
    array = np.atleast_1d(np.asarray(value))
    if array.dtype.kind == "f":
        raw = array.astype("<f4").tobytes()
        if not packed:
            raw = [field(1, raw[at : at + 4], 5) for at in range(0, len(raw), 4)]
            return field(2, b"".join(raw))
        return field(2, field(1, raw))
    numbers = [varint(int(each)) for each in array.ravel()]
    if not packed:
        return field(3, b"".join(field(1, each, 0) for each in numbers))
    return field(3, field(1, b"".join(numbers)))


def example(values, packed=True):
    """A serialised ``tf.train.Example``."""
    entries = [
        field(1, field(1, key.encode()) + field(2, feature(value, packed)))
        for key, value in values.items()
    ]
    return field(1, b"".join(entries))


def crc32c(raw):
    """Bit by bit, as the definition says."""
    crc = 0xFFFFFFFF
    for byte in raw:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(raw):
    crc = crc32c(raw)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(record):
    lead = struct.pack("<Q", len(record))
    return b"".join(
        [lead, struct.pack("<I", masked(lead)), record, struct.pack("<I", masked(record))]
    )


def write_tfrecord(path, records):
    Path(path).write_bytes(b"".join(frame(record) for record in records))


def write_array_record(path, records):
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def write_prepared(folder, splits, features, *, kind="tfrecord", classes=(), keys=None, **info):
    """A folder as tensorflow-datasets prepares it.

    Args:
        folder: Made anew; the name of its parent is the name of the set.
        splits: Name -> list of shards, each a list of records.
        features: Name -> node of ``features.json``.
        kind: "tfrecord" or "array_record".
        classes: Names of the classes of the feature "label".
        keys: Supervised keys.
        info: Overwrites what ``dataset_info.json`` says.
    """
    folder.mkdir(parents=True)
    name, listed = folder.parent.name, []
    write = write_tfrecord if kind == "tfrecord" else write_array_record
    for split, shards in splits.items():
        for at, records in enumerate(shards):
            write(folder / f"{name}-{split}.{kind}-{at:05d}-of-{len(shards):05d}", records)
        listed.append({"name": split, "shardLengths": [str(len(each)) for each in shards]})
    held = {"fileFormat": kind, "name": name, "version": folder.name, "splits": listed}
    if keys:
        held["supervisedKeys"] = {"tuple": {"items": [{"featureKey": key} for key in keys]}}
    (folder / "dataset_info.json").write_text(json.dumps(held | info))
    tree = {"featuresDict": {"features": features}}
    (folder / "features.json").write_text(json.dumps(tree))
    if classes:
        (folder / "label.labels.txt").write_text("\n".join(classes))
    return folder


def image_node(*shape, dtype="uint8"):
    shape = {"dimensions": [str(size or -1) for size in shape]}
    return {"image": {"dtype": dtype, "shape": shape}, "pythonClassName": "tfds.Image"}


def tensor_node(*shape, dtype="float32", encoding="none"):
    shape = {"dimensions": [str(size or -1) for size in shape]}
    return {
        "tensor": {"dtype": dtype, "shape": shape, "encoding": encoding},
        "pythonClassName": "tfds.Tensor",
    }


def class_node(count):
    return {"classLabel": {"numClasses": str(count)}, "pythonClassName": "tfds.ClassLabel"}
