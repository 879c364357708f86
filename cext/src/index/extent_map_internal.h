/* Sharing of a map's rows between views. */
#ifndef SITERIG_EXTENT_MAP_INTERNAL_H
#define SITERIG_EXTENT_MAP_INTERNAL_H

#include "index/extent_map.h"

struct rows {
	int users; /* atomic */
	size_t count;
	struct sr_extent_row row[];
};

/* Return the rows of a merged map; they stay until sr_rows_put. */
struct rows *sr_extents_share(struct sr_extents *map);
void sr_rows_put(struct rows *rows);

/* Advise the kernel to use large pages for memory that was just allocated: lookups and first accesses are faster. */
void sr_expect_lookups(void *memory, size_t bytes);

/* Return the part start .. end of an extent. */
static inline struct sr_extent_row sr_extent_part(const struct sr_extent_row *whole, uint64_t start, uint64_t end)
{
	struct sr_extent_row part = *whole;
	if (start == whole->start && end == whole->end)
		return part;
	part.start = start;
	part.end = end;
	if (part.source == SR_SOURCE_ZEROS)
		return part;
	uint64_t block = start - start % SR_PIECE_BYTES, first = whole->start - whole->before;
	uint64_t next = end + (SR_PIECE_BYTES - end % SR_PIECE_BYTES) % SR_PIECE_BYTES, last = whole->end + whole->after;
	part.before = (uint16_t)(start - (first > block ? first : block));
	part.after = (uint16_t)((last < next ? last : next) - end);
	part.source_offset += start - whole->start;
	part.first_piece += start / SR_PIECE_BYTES - whole->start / SR_PIECE_BYTES;
	return part;
}

#endif
