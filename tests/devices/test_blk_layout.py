"""The layouts of the block device byte by byte, and what its configuration says [5.2.3, 5.2.4, 5.2.5.2]."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm import spec
from vqshm.devices import Blk, blk_layout
from vqshm.devices.blk_layout import BlkConfig, Segment

# Offset and bytes of every field, counted by hand from struct virtio_blk_config.
FIELDS = {
    "capacity": (0, 8),
    "size_max": (8, 4),
    "seg_max": (12, 4),
    "cylinders": (16, 2),
    "heads": (18, 1),
    "sectors": (19, 1),
    "blk_size": (20, 4),
    "physical_block_exp": (24, 1),
    "alignment_offset": (25, 1),
    "min_io_size": (26, 2),
    "opt_io_size": (28, 4),
    "writeback": (32, 1),
    "num_queues": (34, 2),
    "max_discard_sectors": (36, 4),
    "max_discard_seg": (40, 4),
    "discard_sector_alignment": (44, 4),
    "max_write_zeroes_sectors": (48, 4),
    "max_write_zeroes_seg": (52, 4),
    "write_zeroes_may_unmap": (56, 1),
}


def bits(features):
    return {bit for bit in range(64) if features >> bit & 1}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(100 * 512))
    return path


def test_every_field_is_where_the_specification_puts_it():
    assert tuple(FIELDS) == BlkConfig._fields
    for name, (offset, size) in FIELDS.items():
        value = int.from_bytes(bytes(range(0xA1, 0xA1 + size)), "little")
        data = BlkConfig(**{name: value}).pack()
        assert len(data) == 60
        assert data[offset : offset + size] == bytes(range(0xA1, 0xA1 + size))
        assert not any(data[:offset] + data[offset + size :])


@given(st.tuples(*(st.integers(0, 2 ** (8 * size) - 1) for _, size in FIELDS.values())))
def test_a_configuration_there_and_back(values):
    assert BlkConfig.unpack(BlkConfig(*values).pack()) == values


def test_a_shorter_configuration_space_has_zeroes_behind_its_end():
    assert BlkConfig.unpack(BlkConfig(capacity=9, seg_max=7).pack()[:12]) == BlkConfig(capacity=9)


def test_header_and_segment():
    assert blk_layout.pack_header(11, 0x0102030405060708).hex() == "0b00000000000000" + "0807060504030201"
    data = blk_layout.pack_segments([Segment(0x11, 0x22, 1), Segment(3, 4)])
    assert data.hex() == "1100000000000000" + "22000000" + "01000000" + "0300000000000000" + "04000000" + "00000000"
    assert blk_layout.unpack_segments(data) == [(0x11, 0x22, 1), (3, 4, 0)]


def test_what_a_disk_offers(path):
    with Blk(path, queue_size=64) as disk:
        config = BlkConfig.unpack(disk.config)
        assert bits(disk.features) == {2, 6, 9, 10, 13, 14}
    assert (config.capacity, config.seg_max, config.blk_size, config.num_queues) == (100, 62, 512, 0)
    assert config.max_discard_sectors
    assert config.max_discard_seg
    assert config.max_write_zeroes_sectors
    assert config.max_write_zeroes_seg
    assert config.write_zeroes_may_unmap == disk.image.can_punch
    assert (config.size_max, config.cylinders, config.writeback) == (0, 0, 0)


def test_the_topology_is_that_of_the_file(path):
    with Blk(path) as disk:
        config = BlkConfig.unpack(disk.config)
    assert 512 << config.physical_block_exp == disk.image.block_size
    assert config.min_io_size * 512 == disk.image.block_size
    assert config.discard_sector_alignment * 512 == disk.image.block_size


def test_what_a_read_only_disk_offers(path):
    with Blk(path, read_only=True) as disk:
        config = BlkConfig.unpack(disk.config)
        assert bits(disk.features) == {2, 5, 6, 9, 10}
    assert (config.max_discard_sectors, config.max_write_zeroes_sectors, config.write_zeroes_may_unmap) == (0, 0, 0)


def test_more_than_one_queue_is_multiqueue(path):
    with Blk(path, queues=4) as disk:
        assert disk.features >> spec.VIRTIO_BLK_F_MQ & 1
        assert BlkConfig.unpack(disk.config).num_queues == 4


def test_all_features_belong_to_the_device_type(path):
    with Blk(path, queues=4) as disk:
        assert bits(disk.features) <= set(spec.DEVICE_FEATURE_BITS)
        assert disk.device_id == 2
