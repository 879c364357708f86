/* What a change log segment in memory holds: a checked row of changes of the disk, and a checksum for each piece of
 * what they write.  Format: docs/reference/formats/hrl.md.  Any thread; any bytes. */
#ifndef SITERIG_SEGMENT_INDEX_H
#define SITERIG_SEGMENT_INDEX_H

#include <stddef.h>
#include <stdint.h>

enum { SR_PIECE_BYTES = 4096 };

/* A record that changes the disk: SR_WRITE, SR_ZERO, SR_DISCARD (none of 0 bytes) or SR_RESIZE, whose `length` is
 * the new size. A WRITE's payload is at `payload_at` of the segment.  Cut at the multiples of SR_PIECE_BYTES *of the
 * disk*, it has pieces number `first_piece` and those that follow. */
struct sr_entry {
	uint64_t position, time_ns, offset, length, payload_at;
	uint32_t first_piece, type;
};

struct sr_tag_place {
	uint64_t at, payload_at, offset; /* of the record and its payload in the segment; what its `offset` says */
	uint32_t payload_bytes;
};

enum { SR_FITS, SR_SHRINKS, SR_BEYOND };

/* `first_*` of the first record, the rest of the last.  `refusal`: of the first record that does not fit the disk,
 * which had `refused_size` bytes before it: SR_SHRINKS (to `refused_to`) or SR_BEYOND (it ends there).  `is_bad`:
 * the segment is not sound; where the first bad record is, and the number and least position that the one there
 * should have. */
struct sr_index {
	struct sr_entry *entries;
	uint32_t *pieces; /* CRC32C each */
	struct sr_tag_place *tags; /* also of a bad TAG */
	size_t entry_count, piece_count, tag_count;
	uint64_t records, first_position, position, time_ns, size_after;
	int refusal;
	uint64_t refused_seq, refused_size, refused_to;
	int is_bad;
	uint64_t bad_at, next_seq;
};

/* `size`: the disk's before the segment.  `seed`, `first_seq`: from its header, which the caller has checked.  0,
 * -EFBIG (4 GiB and more) or -ENOMEM.  `index` is all zero before; afterwards, whatever it was: sr_index_free. */
int sr_index_segment(struct sr_index *index, const void *data, size_t bytes, uint32_t seed, uint64_t first_seq,
		     uint64_t size);
void sr_index_free(struct sr_index *index);

#endif
