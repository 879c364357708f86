#define _GNU_SOURCE
#include "index/extent_map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/record.h"
#include "index/extent_map_internal.h"

#define NUMBER_MAX ((1ull << 63) - 1)
#define PENDING_MAX (1u << 20) /* more pending changes are merged, unless there are as many extents */
#define RADIX_BITS 11
#define LARGE_PAGE_BYTES ((size_t)2 << 20)
#define LOOK_AHEAD 16 /* items are prefetched from memory this far ahead */

/* Changes in the order of their arrival: one extent each, with all of its pieces. */
struct sr_extents {
	struct rows *merged;
	struct sr_extent_row *pending;
	size_t pending_count, pending_room;
	struct rows *base; /* added, and not yet merged under the rest */
};

struct item {
	uint64_t start;
	uint32_t number; /* number of a pending change: a higher one is later */
};

void sr_expect_lookups(void *memory, size_t bytes)
{
	uintptr_t start = ((uintptr_t)memory + LARGE_PAGE_BYTES - 1) & ~(uintptr_t)(LARGE_PAGE_BYTES - 1);
	uintptr_t end = ((uintptr_t)memory + bytes) & ~(uintptr_t)(LARGE_PAGE_BYTES - 1);
	if (start < end)
		(void)madvise((void *)start, end - start, MADV_HUGEPAGE); /* advice only */
}

/* --- rows ---------------------------------------------------------------------------------------------------- */

static struct rows *new_rows(size_t room)
{
	size_t bytes = sizeof(struct rows) + room * sizeof(struct sr_extent_row);
	struct rows *rows = malloc(bytes);
	if (!rows)
		return NULL;
	sr_expect_lookups(rows, bytes);
	rows->users = 1;
	rows->count = 0;
	return rows;
}

void sr_rows_put(struct rows *rows)
{
	if (rows && __atomic_sub_fetch(&rows->users, 1, __ATOMIC_ACQ_REL) == 0)
		free(rows);
}

/* Free unused space. */
static struct rows *trimmed(struct rows *rows)
{
	struct rows *less = realloc(rows, sizeof(*rows) + rows->count * sizeof(rows->row[0]));
	return less ? less : rows;
}

struct rows *sr_extents_share(struct sr_extents *map)
{
	__atomic_add_fetch(&map->merged->users, 1, __ATOMIC_RELAXED);
	return map->merged;
}

/* Add a part of an extent; zeros and parts of the base extend the last row if they continue it. */
static inline void emit(struct rows *rows, const struct sr_extent_row *whole, uint64_t start, uint64_t end)
{
	struct sr_extent_row part = sr_extent_part(whole, start, end);
	if (rows->count && part.source <= SR_SOURCE_BASE) {
		struct sr_extent_row *last = &rows->row[rows->count - 1];
		if (last->end == start && last->source == part.source) {
			last->end = end;
			last->after = part.after;
			return;
		}
	}
	rows->row[rows->count++] = part;
}

/* Lay `top` over `bottom`. */
static struct rows *lay_over(const struct rows *top, const struct rows *bottom)
{
	struct rows *done = new_rows(2 * top->count + bottom->count); /* each upper row splits at most one lower row */
	const struct sr_extent_row *below = bottom->row, *last = below + bottom->count;
	uint64_t from = 0; /* everything before is done */

	if (!done)
		return NULL;
	for (size_t i = 0; i < top->count; i++) {
		const struct sr_extent_row *above = &top->row[i];
		for (; below < last && below->end <= above->start; below++)
			emit(done, below, below->start > from ? below->start : from, below->end);
		if (below < last && below->start < above->start && from < above->start)
			emit(done, below, below->start > from ? below->start : from, above->start);
		emit(done, above, above->start, above->end);
		from = above->end;
		while (below < last && below->end <= from)
			below++;
	}
	for (; below < last; below++)
		emit(done, below, below->start > from ? below->start : from, below->end);
	return trimmed(done);
}

/* --- changes in order ---------------------------------------------------------------------------------------- */

/* Sort by start, then by number; digits that are equal in all items cost nothing. Returns the sorted items, in one
 * of the two arrays. */
static struct item *sort_items(struct item *items, struct item *other, size_t count)
{
	uint64_t differs = 0;
	for (size_t i = 1; i < count; i++)
		differs |= items[i].start ^ items[0].start;
	for (unsigned shift = 0; shift < 64; shift += RADIX_BITS) {
		size_t place[1 << RADIX_BITS] = {0}, sum = 0;
		const uint64_t mask = (1u << RADIX_BITS) - 1;
		if ((differs >> shift & mask) == 0)
			continue;
		for (size_t i = 0; i < count; i++)
			place[items[i].start >> shift & mask]++;
		for (size_t digit = 0; digit <= mask; digit++) {
			size_t these = place[digit];
			place[digit] = sum;
			sum += these;
		}
		for (size_t i = 0; i < count; i++)
			other[place[items[i].start >> shift & mask]++] = items[i];
		struct item *sorted = other;
		other = items;
		items = sorted;
	}
	return items;
}

/* Changes that cover the position of the sweep, the latest first. */
struct heap {
	uint32_t *numbers;
	size_t count;
};

static void sink(struct heap *heap, size_t at)
{
	uint32_t moved = heap->numbers[at];
	for (;;) {
		size_t child = 2 * at + 1;
		if (child >= heap->count)
			break;
		if (child + 1 < heap->count && heap->numbers[child + 1] > heap->numbers[child])
			child++;
		if (heap->numbers[child] <= moved)
			break;
		heap->numbers[at] = heap->numbers[child];
		at = child;
	}
	heap->numbers[at] = moved;
}

static void heap_pop(struct heap *heap)
{
	heap->numbers[0] = heap->numbers[--heap->count];
	if (heap->count)
		sink(heap, 0);
}

static void heap_push(struct heap *heap, uint32_t number, const struct sr_extent_row *pending)
{
	if (heap->count) {
		uint32_t top = heap->numbers[0];
		if (top > number && pending[top].end >= pending[number].end)
			return; /* it is hidden up to its end */
		if (top < number && pending[top].end <= pending[number].end) {
			heap->numbers[0] = number; /* it hides that one up to its end */
			return;
		}
	}
	size_t at = heap->count++;
	while (at > 0 && heap->numbers[(at - 1) / 2] < number) {
		heap->numbers[at] = heap->numbers[(at - 1) / 2];
		at = (at - 1) / 2;
	}
	heap->numbers[at] = number;
}

/* Return the visible parts of the pending changes; later changes hide earlier ones. */
static struct rows *sweep(const struct sr_extent_row *pending, const struct item *items, size_t count, uint32_t *room)
{
	struct rows *seen = new_rows(2 * count); /* the start and the end of each change begin at most one row */
	struct heap heap = {room, 0};
	size_t next = 0;
	uint64_t at = 0, shown_from = 0; /* start of the part of `shown` that has no row yet */
	const struct sr_extent_row *shown = NULL;

	if (!seen)
		return NULL;
	while (next < count || heap.count) {
		if (heap.count == 0)
			at = items[next].start;
		for (; next < count && items[next].start <= at; next++) {
			if (next + LOOK_AHEAD < count)
				__builtin_prefetch(&pending[items[next + LOOK_AHEAD].number]);
			heap_push(&heap, items[next].number, pending);
		}
		while (heap.count && pending[heap.numbers[0]].end <= at)
			heap_pop(&heap);
		const struct sr_extent_row *top = heap.count ? &pending[heap.numbers[0]] : NULL;
		if (top != shown) {
			if (shown)
				emit(seen, shown, shown_from, shown->end < at ? shown->end : at);
			shown = top;
			shown_from = at;
		}
		if (top)
			at = next < count && items[next].start < top->end ? items[next].start : top->end;
	}
	return trimmed(seen);
}

static struct rows *in_order(const struct sr_extent_row *pending, size_t count)
{
	struct item *items = malloc(2 * count * sizeof(*items));
	uint32_t *heap = malloc(count * sizeof(*heap));
	struct rows *seen = NULL;

	if (items && heap) {
		for (size_t i = 0; i < count; i++)
			items[i] = (struct item){pending[i].start, (uint32_t)i};
		seen = sweep(pending, sort_items(items, items + count, count), count, heap);
	}
	free(items);
	free(heap);
	return seen;
}

/* --- maps ---------------------------------------------------------------------------------------------------- */

struct sr_extents *sr_extents_new(void)
{
	struct sr_extents *map = calloc(1, sizeof(*map));
	struct rows *rows = new_rows(0);
	if (!map || !rows) {
		free(map);
		free(rows);
		return NULL;
	}
	map->merged = rows;
	return map;
}

void sr_extents_free(struct sr_extents *map)
{
	if (!map)
		return;
	sr_rows_put(map->merged);
	sr_rows_put(map->base);
	free(map->pending);
	free(map);
}

int sr_extents_add_base(struct sr_extents *map, const uint64_t *ranges, size_t count)
{
	struct sr_extent_row *added = malloc((count ? count : 1) * sizeof(*added));
	struct rows *rows;

	if (!added)
		return -ENOMEM;
	for (size_t i = 0; i < count; i++) {
		uint64_t start = ranges[2 * i], bytes = ranges[2 * i + 1];
		if (start % SR_PIECE_BYTES || start > NUMBER_MAX / 4 || bytes > NUMBER_MAX / 4 || bytes == 0) {
			free(added);
			return -EINVAL;
		}
		uint64_t rest = (start + bytes) % SR_PIECE_BYTES;
		added[i] = (struct sr_extent_row){.start = start,
						  .end = start + bytes,
						  .source_offset = start,
						  .first_piece = start / SR_PIECE_BYTES,
						  .source = SR_SOURCE_BASE,
						  .after = rest ? (uint16_t)(SR_PIECE_BYTES - rest) : 0};
	}
	rows = in_order(added, count);
	free(added);
	if (rows && map->base) {
		struct rows *both = lay_over(rows, map->base);
		sr_rows_put(rows);
		rows = both;
	}
	if (!rows)
		return -ENOMEM;
	sr_rows_put(map->base);
	map->base = rows;
	return 0;
}

static int entry_is_valid(const struct sr_entry *entry, uint64_t segment_at, uint64_t piece_at)
{
	if (entry->type == SR_RESIZE)
		return entry->length <= NUMBER_MAX && entry->length % SR_DISK_SECTOR_BYTES == 0;
	if (entry->length == 0 || entry->offset > NUMBER_MAX || entry->length > NUMBER_MAX - entry->offset)
		return 0;
	if (entry->type == SR_ZERO || entry->type == SR_DISCARD)
		return 1;
	return entry->type == SR_WRITE && entry->payload_at <= NUMBER_MAX / 4 && segment_at <= NUMBER_MAX / 4 &&
	       entry->length <= NUMBER_MAX / 4 && piece_at <= NUMBER_MAX / 4;
}

/* Make space for `count` more pending changes. */
static int pending_room(struct sr_extents *map, size_t count)
{
	if (map->pending_count >= PENDING_MAX && map->pending_count >= map->merged->count) {
		int rc = sr_extents_merge(map);
		if (rc)
			return rc;
	}
	size_t wanted = map->pending_count + count;
	if (wanted > UINT32_MAX)
		return -ENOMEM;
	if (wanted <= map->pending_room)
		return 0;
	if (wanted < 2 * map->pending_room)
		wanted = 2 * map->pending_room;
	struct sr_extent_row *grown = realloc(map->pending, wanted * sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	map->pending = grown;
	map->pending_room = wanted;
	return 0;
}

int64_t sr_extents_add(struct sr_extents *map, int32_t source, const void *entries, size_t count, uint64_t segment_at,
		       uint64_t piece_at, int64_t after, uint64_t upto)
{
	const char *raw = entries;
	struct sr_entry entry;
	uint64_t size = 0;
	int rc = source <= SR_SOURCE_BASE ? -EINVAL : pending_room(map, count);

	if (rc)
		return rc;
	size_t added = map->pending_count;
	for (size_t i = 0; i < count; i++) {
		memcpy(&entry, raw + i * sizeof(entry), sizeof(entry));
		if (!entry_is_valid(&entry, segment_at, piece_at))
			return -EINVAL;
		if ((after >= 0 && entry.position <= (uint64_t)after) || entry.position > upto)
			continue;
		if (entry.type == SR_RESIZE) {
			size = entry.length;
			continue;
		}
		struct sr_extent_row row = {.start = entry.offset, .end = entry.offset + entry.length, .source = SR_SOURCE_ZEROS};
		if (entry.type == SR_WRITE) {
			row.source = source;
			row.source_offset = segment_at + entry.payload_at;
			row.first_piece = piece_at + entry.first_piece;
		}
		map->pending[added++] = row;
	}
	map->pending_count = added;
	return (int64_t)size;
}

static void replace_merged(struct sr_extents *map, struct rows *rows)
{
	sr_rows_put(map->merged);
	map->merged = rows;
}

int sr_extents_merge(struct sr_extents *map)
{
	if (map->pending_count) {
		struct rows *seen = in_order(map->pending, map->pending_count);
		if (seen && map->merged->count) {
			struct rows *both = lay_over(seen, map->merged);
			sr_rows_put(seen);
			seen = both;
		}
		if (!seen)
			return -ENOMEM;
		replace_merged(map, seen);
		free(map->pending);
		map->pending = NULL;
		map->pending_count = map->pending_room = 0;
	}
	if (map->base) {
		struct rows *both = lay_over(map->merged, map->base);
		if (!both)
			return -ENOMEM;
		replace_merged(map, both);
		sr_rows_put(map->base);
		map->base = NULL;
	}
	return 0;
}

size_t sr_extents_count(const struct sr_extents *map)
{
	return map->merged->count;
}

const struct sr_extent_row *sr_extents_rows(const struct sr_extents *map)
{
	return map->merged->row;
}

void sr_extents_used(const struct sr_extents *map, uint8_t *used, size_t count)
{
	for (size_t i = 0; i < map->merged->count; i++) {
		int32_t source = map->merged->row[i].source;
		if (source >= 0 && (size_t)source < count)
			used[source] = 1;
	}
}

int sr_extents_retarget(struct sr_extents *map, const int32_t *becomes, const uint64_t *least, size_t count)
{
	struct rows *rows = new_rows(map->merged->count);
	if (!rows)
		return -ENOMEM;
	for (size_t i = 0; i < map->merged->count; i++) {
		struct sr_extent_row row = map->merged->row[i];
		if (row.source >= 0 && (size_t)row.source >= count) {
			free(rows);
			return -EINVAL;
		}
		if (row.source > SR_SOURCE_BASE)
			row.source = row.source_offset < least[row.source] ? SR_SOURCE_GONE : becomes[row.source];
		if (row.source != SR_SOURCE_GONE)
			rows->row[rows->count++] = row;
	}
	replace_merged(map, trimmed(rows));
	return 0;
}

int64_t sr_extents_ranges(const struct sr_extents *map, int zeros, uint64_t unit_bytes, uint64_t *pairs)
{
	int64_t count = 0;
	uint64_t end = 0;
	for (size_t i = 0; i < map->merged->count; i++) {
		const struct sr_extent_row *row = &map->merged->row[i];
		if (row->source == SR_SOURCE_ZEROS && !zeros)
			continue;
		uint64_t from = row->start - row->start % unit_bytes, rest = row->end % unit_bytes;
		uint64_t to = rest ? row->end + unit_bytes - rest : row->end;
		if (count && from <= end) {
			if (to > end)
				pairs[2 * count - 1] += to - end;
		} else {
			pairs[2 * count] = from;
			pairs[2 * count + 1] = to - from;
			count++;
		}
		if (to > end)
			end = to;
	}
	return count;
}

/* --- as bytes ------------------------------------------------------------------------------------------------ */

size_t sr_extents_dump(const struct sr_extents *map, struct sr_extent_row *rows)
{
	size_t count = 0;
	for (size_t i = 0; i < map->merged->count; i++)
		if (map->merged->row[i].source != SR_SOURCE_BASE)
			rows[count++] = map->merged->row[i];
	return count;
}

static int row_is_valid(const struct sr_extent_row *row, int32_t sources)
{
	if (row->start >= row->end || row->end > NUMBER_MAX)
		return 0;
	if (row->source == SR_SOURCE_ZEROS)
		return !row->source_offset && !row->first_piece && !row->before && !row->after;
	if (row->source <= SR_SOURCE_BASE || row->source >= sources)
		return 0;
	if (row->source_offset > NUMBER_MAX - (row->end - row->start) || row->source_offset < row->before ||
	    row->first_piece > NUMBER_MAX)
		return 0;
	uint64_t rest = row->end % SR_PIECE_BYTES;
	return row->before <= row->start % SR_PIECE_BYTES && row->after <= (rest ? SR_PIECE_BYTES - rest : 0);
}

int64_t sr_extents_load(struct sr_extents *map, const void *rows, size_t count, int32_t sources)
{
	struct rows *loaded = new_rows(count);
	uint64_t end = 0;

	if (!loaded)
		return -ENOMEM;
	memcpy(loaded->row, rows, count * sizeof(loaded->row[0]));
	loaded->count = count;
	for (size_t i = 0; i < count; i++) {
		const struct sr_extent_row *row = &loaded->row[i];
		if (row->start < end || !row_is_valid(row, sources)) {
			free(loaded);
			return (int64_t)i;
		}
		end = row->end;
	}
	replace_merged(map, loaded);
	return (int64_t)count;
}
