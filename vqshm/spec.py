"""Every number that the virtio 1.4 specification fixes and vqshm uses, with its section."""

from __future__ import annotations

from typing import Final

# -- sizes and alignments of a split virtqueue [2.7] -------------------------------------------------------------------
MAX_QUEUE_SIZE: Final = 32768  # largest queue size, a power of two [2.7]

DESC_SIZE: Final = 16  # struct virtq_desc {le64 addr; le32 len; le16 flags; le16 next} [2.7.5]
AVAIL_HEADER_SIZE: Final = 4  # le16 flags, le16 idx [2.7.6]
AVAIL_ELEMENT_SIZE: Final = 2  # le16 ring[] [2.7.6]
USED_HEADER_SIZE: Final = 4  # le16 flags, le16 idx [2.7.8]
USED_ELEMENT_SIZE: Final = 8  # struct virtq_used_elem {le32 id; le32 len} [2.7.8]
EVENT_SIZE: Final = 2  # used_event behind the available ring, avail_event behind the used ring [2.7.6, 2.7.8]

DESC_TABLE_ALIGN: Final = 16  # [2.7]
AVAIL_RING_ALIGN: Final = 2  # [2.7]
USED_RING_ALIGN: Final = 4  # [2.7]

MAX_CHAIN_BYTES: Final = 0xFFFF_FFFF  # "MUST NOT … longer than 2^32 bytes in total"; used.len is 32 bits [2.7.5.2]

# -- descriptor flags [2.7.5] ------------------------------------------------------------------------------------------
VIRTQ_DESC_F_NEXT: Final = 1  # the chain goes on at `next`
VIRTQ_DESC_F_WRITE: Final = 2  # device-writable; otherwise device-readable
VIRTQ_DESC_F_INDIRECT: Final = 4  # the buffer is a table of descriptors [2.7.5.3]
VIRTQ_DESC_F_AVAIL: Final = 1 << 7  # packed ring only [2.8.1]
VIRTQ_DESC_F_USED: Final = 1 << 15  # packed ring only [2.8.1]

# -- ring flags and events ---------------------------------------------------------------------------------------------
VIRTQ_AVAIL_F_NO_INTERRUPT: Final = 1  # driver: please no used-buffer notification (call) [2.7.7]
VIRTQ_USED_F_NO_NOTIFY: Final = 1  # device: please no available-buffer notification (kick) [2.7.10]

# -- device status bits [2.1] ------------------------------------------------------------------------------------------
STATUS_RESET: Final = 0
STATUS_ACKNOWLEDGE: Final = 1
STATUS_DRIVER: Final = 2
STATUS_DRIVER_OK: Final = 4
STATUS_FEATURES_OK: Final = 8
STATUS_SUSPEND: Final = 16
STATUS_DEVICE_NEEDS_RESET: Final = 64
STATUS_FAILED: Final = 128

# -- feature bits [6]: bit numbers, not masks --------------------------------------------------------------------------
VIRTIO_F_INDIRECT_DESC: Final = 28
VIRTIO_F_EVENT_IDX: Final = 29
VIRTIO_F_VERSION_1: Final = 32
VIRTIO_F_ACCESS_PLATFORM: Final = 33
VIRTIO_F_RING_PACKED: Final = 34
VIRTIO_F_IN_ORDER: Final = 35
VIRTIO_F_ORDER_PLATFORM: Final = 36
VIRTIO_F_SR_IOV: Final = 37
VIRTIO_F_NOTIFICATION_DATA: Final = 38
VIRTIO_F_NOTIF_CONFIG_DATA: Final = 39
VIRTIO_F_RING_RESET: Final = 40
VIRTIO_F_ADMIN_VQ: Final = 41
VIRTIO_F_SUSPEND: Final = 43

DEVICE_FEATURE_BITS: Final = (*range(24), 41, 42, *range(50, 128))  # bits that belong to the device type [2.2]

# -- device ids [5] ----------------------------------------------------------------------------------------------------
VIRTIO_ID_NET: Final = 1
VIRTIO_ID_BLOCK: Final = 2
VIRTIO_ID_CONSOLE: Final = 3
VIRTIO_ID_ENTROPY: Final = 4
# vqshm's own simple devices; the specification assigns ids upward from 1, these stay far from them.
VQSHM_ID_ECHO: Final = 0x7601
VQSHM_ID_CHECKSUM: Final = 0x7602
VQSHM_ID_ZBLOCK: Final = 0x7603
VQSHM_ID_LANE: Final = 0x7604  # one queue for messages, from driver to device

# -- block device [5.2] ------------------------------------------------------------------------------------------------
VIRTIO_BLK_F_SIZE_MAX: Final = 1
VIRTIO_BLK_F_SEG_MAX: Final = 2
VIRTIO_BLK_F_RO: Final = 5
VIRTIO_BLK_F_BLK_SIZE: Final = 6
VIRTIO_BLK_F_FLUSH: Final = 9
VIRTIO_BLK_F_TOPOLOGY: Final = 10
VIRTIO_BLK_F_CONFIG_WCE: Final = 11
VIRTIO_BLK_F_MQ: Final = 12
VIRTIO_BLK_F_DISCARD: Final = 13
VIRTIO_BLK_F_WRITE_ZEROES: Final = 14

VIRTIO_BLK_T_IN: Final = 0  # [5.2.6]
VIRTIO_BLK_T_OUT: Final = 1
VIRTIO_BLK_T_FLUSH: Final = 4
VIRTIO_BLK_T_GET_ID: Final = 8
VIRTIO_BLK_T_DISCARD: Final = 11
VIRTIO_BLK_T_WRITE_ZEROES: Final = 13

VIRTIO_BLK_S_OK: Final = 0
VIRTIO_BLK_S_IOERR: Final = 1
VIRTIO_BLK_S_UNSUPP: Final = 2

VIRTIO_BLK_SECTOR_SIZE: Final = 512
VIRTIO_BLK_ID_BYTES: Final = 20
VIRTIO_BLK_WRITE_ZEROES_F_UNMAP: Final = 1


def mask(*bits: int) -> int:
    """The 64-bit mask with the numbered feature bits set."""
    result = 0
    for bit in bits:
        result |= 1 << bit
    return result
