/* Extent maps: where the bytes of a disk are stored. Extents are sorted and do not overlap; bytes outside are zeros.
 *
 * One thread at a time uses a map. The rows of a merged map never change: views share them (layers/view.c).
 */
#ifndef SITERIG_EXTENT_MAP_H
#define SITERIG_EXTENT_MAP_H

#include <stddef.h>
#include <stdint.h>

#include "index/segment_index.h"

enum { SR_SOURCE_ZEROS = -1, SR_SOURCE_GONE = -2, SR_SOURCE_BASE = 0 };

/* Bytes start .. end of the disk are at `source_offset` of file `source`, in piece number `first_piece` of that file
 * and the following pieces. `before` bytes of the first piece and `after` bytes of the last are outside the extent,
 * because a later write covers them; the check of a piece must read them, too. Zeros have none of these fields. A
 * piece of the base is always a whole block, even if the file ends within it. */
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

/* All functions below return 0 or more, or -errno; after -ENOMEM the map is unchanged. */

/* Add ranges in which the base holds data: (offset, bytes) pairs with offsets on block boundaries. The base lies
 * under everything else, whenever it is added. -EINVAL: a range is invalid. */
int sr_extents_add_base(struct sr_extents *map, const uint64_t *ranges, size_t count);

/* Add the changes after position `after` (-1: all) up to `upto`, in order, each over everything added before. Their
 * segment begins at byte `segment_at` of file `source`, their pieces at number `piece_at` of its table. Returns the
 * disk's size if a RESIZE is among them, otherwise 0. `entries` are rows of struct sr_entry, at any alignment.
 * -EINVAL: an entry is invalid; then none is added. */
int64_t sr_extents_add(struct sr_extents *map, int32_t source, const void *entries, size_t count,
		       uint64_t segment_at, uint64_t piece_at, int64_t after, uint64_t upto);

/* Merge the added changes into the map. */
int sr_extents_merge(struct sr_extents *map);

/* The functions below concern the merged rows. */
size_t sr_extents_count(const struct sr_extents *map);
const struct sr_extent_row *sr_extents_rows(const struct sr_extents *map);

/* Set used[i] to 1 for each source i below `count` that has an extent. */
void sr_extents_used(const struct sr_extents *map, uint8_t *used, size_t count);

/* Change the source of extents from i to `becomes[i]`; SR_SOURCE_GONE removes them. Extents before byte `least[i]`
 * of source i are removed, too. -EINVAL: a source is not below `count`. */
int sr_extents_retarget(struct sr_extents *map, const int32_t *becomes, const uint64_t *least, size_t count);

/* Store (offset, bytes) of the extents in `pairs`, which has space for as many pairs as there are extents; with or
 * without zeros, widened to multiples of `unit_bytes`, and joined. Returns the number of pairs. */
int64_t sr_extents_ranges(const struct sr_extents *map, int zeros, uint64_t unit_bytes, uint64_t *pairs);

/* Store all extents except those of the base in `rows`, which has space for all. Returns their number. */
size_t sr_extents_dump(const struct sr_extents *map, struct sr_extent_row *rows);

/* Load dumped rows into an empty map with `sources` sources. Returns `count`, or the number of the first invalid
 * row. */
int64_t sr_extents_load(struct sr_extents *map, const void *rows, size_t count, int32_t sources);

#endif
