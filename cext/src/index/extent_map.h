/* Which bytes of a disk are found where: extents, sorted, without overlap; what is in none is zeros.
 *
 * A map is used by one thread at a time.  The rows of a merged one never change: views share them (layers/view.c).
 */
#ifndef SITERIG_EXTENT_MAP_H
#define SITERIG_EXTENT_MAP_H

#include <stddef.h>
#include <stdint.h>

#include "index/segment_index.h"

enum { SR_SOURCE_ZEROS = -1, SR_SOURCE_GONE = -2, SR_SOURCE_BASE = 0 };

/* Bytes start .. end of the disk are at `source_offset` of file `source`, in the piece number `first_piece` of that
 * file and those that follow.  `before` bytes of the first piece and `after` bytes of the last lie outside of the
 * extent, for a later write covers them; to check the piece they must be read, too.  Zeros have none of this. Of the
 * base, a piece is always a whole block, also where the file ends within it. */
struct sr_extent_row {
	uint64_t start, end;
	uint64_t source_offset, first_piece;
	int32_t source;
	uint16_t before, after;
};

struct sr_extents;

/* NULL: no memory. */
struct sr_extents *sr_extents_new(void);
void sr_extents_free(struct sr_extents *map);

/* All functions below: 0 or more, or -errno; after -ENOMEM the map is as it was. */

/* The base holds data there: (offset, bytes) pairs, the offsets on block boundaries.  It lies under everything else,
 * whenever it is added.  -EINVAL: one of them cannot be. */
int sr_extents_add_base(struct sr_extents *map, const uint64_t *ranges, size_t count);

/* Changes behind position `after` (-1: all) up to `upto`, in order; each over all that was added before.  Their
 * segment begins at byte `segment_at` of file `source`, their pieces at number `piece_at` of its table.  Gives the
 * disk's size if a RESIZE is among them, else 0.  `entries`: rows of struct sr_entry, at any address.  -EINVAL: an
 * entry makes no sense (none is added then). */
int64_t sr_extents_add(struct sr_extents *map, int32_t source, const void *entries, size_t count,
		       uint64_t segment_at, uint64_t piece_at, int64_t after, uint64_t upto);

/* Bring what was added into order. */
int sr_extents_merge(struct sr_extents *map);

/* The rest is of what was merged. */
size_t sr_extents_count(const struct sr_extents *map);
const struct sr_extent_row *sr_extents_rows(const struct sr_extents *map);

/* Sets used[i] to 1 if an extent is of source i, which is below `count`. */
void sr_extents_used(const struct sr_extents *map, uint8_t *used, size_t count);

/* Extents of source i become those of source `becomes[i]` (SR_SOURCE_GONE: they are left out), but for those before
 * byte `least[i]` of it, which are left out.  -EINVAL: one is not below `count`. */
int sr_extents_retarget(struct sr_extents *map, const int32_t *becomes, const uint64_t *least, size_t count);

/* (offset, bytes) pairs into `pairs`, which has room for as many as there are extents; with or without zeros,
 * widened to multiples of `unit_bytes`, joined.  Gives how many. */
int64_t sr_extents_ranges(const struct sr_extents *map, int zeros, uint64_t unit_bytes, uint64_t *pairs);

/* All but the extents of the base, into `rows`, which has room for all.  Gives how many. */
size_t sr_extents_dump(const struct sr_extents *map, struct sr_extent_row *rows);

/* The opposite, into an empty map.  Gives `count`, or the number of the first row that cannot be.  `sources`: how
 * many there are. */
int64_t sr_extents_load(struct sr_extents *map, const void *rows, size_t count, int32_t sources);

#endif
