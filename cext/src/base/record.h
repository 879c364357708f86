/* The layout of a change log's segment (docs/reference/formats/hrl.md): a header, and records. Little endian, like
 * every machine that this program runs on (crc32c.c). */
#ifndef SITERIG_RECORD_H
#define SITERIG_RECORD_H

#include <stdint.h>

#define RECORD_MAGIC 0x52435253u
#define FLAG_CLEAN_CLOSE 1 /* on a FLUSH */

enum sr_record_type { SR_WRITE = 1, SR_ZERO = 2, SR_DISCARD = 3, SR_FLUSH = 4, SR_TAG = 5, SR_RESIZE = 6 };

enum { SR_SEGMENT_HEADER_BYTES = 128, SR_RECORD_HEADER_BYTES = 64 };
enum { SR_PAYLOAD_BYTES_MAX = 64 << 20 }; /* of a record, and therefore of a write */

/* Python creates the header (blockfs/changelog/segment.py). The writer fills in `first_seq`, `created_ns`,
 * `disk_size_bytes` and `crc`, which is the seed of the checksums of the segment's records. */
struct segment_header {
	uint8_t magic[8];
	uint16_t version, header_bytes;
	uint8_t stream, zero0[3];
	uint8_t disk_id[16];
	uint64_t generation, first_seq;
	uint8_t boot_id[16];
	uint64_t created_ns, disk_size_bytes;
	uint8_t key_id[16]; /* of the log of an encrypted disk (version 2), else zero */
	uint8_t zero1[28];
	uint32_t crc;
};
_Static_assert(sizeof(struct segment_header) == SR_SEGMENT_HEADER_BYTES, "layout of a segment's header");

struct record {
	uint32_t magic;
	uint8_t type, flags;
	uint16_t header_bytes;
	uint64_t seq, position, time_ns, offset, length;
	uint32_t payload_bytes, zero0, zero1, crc;
};
_Static_assert(sizeof(struct record) == SR_RECORD_HEADER_BYTES, "layout of a record");

#endif
