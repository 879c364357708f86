/* The contents of a change log segment in memory: its checked changes of the disk, and a checksum for each piece of
 * their data. Format: docs/reference/formats/hrl.md. Any thread; any bytes. */
#ifndef SITERIG_SEGMENT_INDEX_H
#define SITERIG_SEGMENT_INDEX_H

#include <stddef.h>
#include <stdint.h>

enum { SR_PIECE_BYTES = 4096, SR_DISK_SECTOR_BYTES = 512 }; /* a disk has whole sectors */

/* A record that changes the disk: SR_WRITE, SR_ZERO, SR_DISCARD (never of 0 bytes) or SR_RESIZE, whose `length` is
 * the new size. The payload of a WRITE is at `payload_at` of the segment. It is split at the multiples of
 * SR_PIECE_BYTES *of the disk* into piece number `first_piece` and the following pieces. */
struct sr_entry {
	uint64_t position, time_ns, offset, length, payload_at;
	uint32_t first_piece, type;
};

struct sr_tag_place {
	uint64_t at, payload_at, offset; /* places of the record and its payload in the segment; the record's `offset` field */
	uint32_t payload_bytes;
};

enum { SR_FITS, SR_SHRINKS, SR_BEYOND, SR_PART_OF_SECTOR };

/* `first_*` belong to the first record, the other values to the last. `refusal` is about the first record that does
 * not fit the disk, which had `refused_size` bytes before it: SR_SHRINKS or SR_PART_OF_SECTOR (to `refused_to`), or
 * SR_BEYOND (it ends at `refused_to`). `is_bad`: the segment is corrupt; the next fields are the place of the first bad record, and the
 * number and least position that a good record there would have. */
struct sr_index {
	struct sr_entry *entries;
	uint32_t *pieces; /* one CRC32C each */
	struct sr_tag_place *tags; /* bad TAG records included */
	size_t entry_count, piece_count, tag_count;
	uint64_t records, first_position, position, time_ns, size_after;
	int refusal;
	uint64_t refused_seq, refused_size, refused_to;
	int is_bad;
	uint64_t bad_at, next_seq;
};

/* Index a segment. `size` is the disk's size before it; `seed` and `first_seq` come from its header, which the
 * caller has checked. Returns 0, -EFBIG (4 GiB and more) or -ENOMEM. `index` is all zero before; call sr_index_free
 * after any result. */
int sr_index_segment(struct sr_index *index, const void *data, size_t bytes, uint32_t seed, uint64_t first_seq,
		     uint64_t size);
void sr_index_free(struct sr_index *index);

#endif
