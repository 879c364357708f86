#include "index/segment_index.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/record.h"
#include "base/siterig.h"

#define NUMBER_MAX ((1ull << 63) - 1) /* a signed 64-bit number */

/* Make space for `more` items of `item` bytes after `count`, in steps that double. */
static int make_room(void **items, size_t count, size_t more, size_t item)
{
	size_t had = count ? (size_t)1 << (64 - __builtin_clzll(count)) : 0; /* the smallest power of two above */
	if (count + more < had)
		return 0;
	void *grown = realloc(*items, ((size_t)1 << (64 - __builtin_clzll(count + more))) * item);
	if (!grown)
		return -ENOMEM;
	*items = grown;
	return 0;
}

static int is_sound(const struct record *record)
{
	if (record->header_bytes != SR_RECORD_HEADER_BYTES || record->zero0 || record->zero1)
		return 0;
	if (record->seq > NUMBER_MAX || record->position > NUMBER_MAX || record->time_ns > NUMBER_MAX ||
	    record->offset > NUMBER_MAX || record->length > NUMBER_MAX - record->offset)
		return 0;
	if (record->flags && (record->type != SR_FLUSH || record->flags != FLAG_CLEAN_CLOSE))
		return 0;
	switch (record->type) {
	case SR_WRITE:
		return record->payload_bytes == record->length;
	case SR_TAG:
		return 1;
	case SR_ZERO:
	case SR_DISCARD:
	case SR_FLUSH:
	case SR_RESIZE:
		return record->payload_bytes == 0;
	default:
		return 0;
	}
}

static int add_tag(struct sr_index *index, const struct record *record, uint64_t at)
{
	int rc = make_room((void **)&index->tags, index->tag_count, 1, sizeof(*index->tags));
	if (rc)
		return rc;
	index->tags[index->tag_count++] = (struct sr_tag_place){
		at, at + SR_RECORD_HEADER_BYTES, record->offset, record->payload_bytes};
	return 0;
}

static int add_pieces(struct sr_index *index, const uint8_t *payload, uint64_t offset, uint64_t bytes)
{
	uint64_t count = (offset + bytes - 1) / SR_PIECE_BYTES - offset / SR_PIECE_BYTES + 1;
	int rc = make_room((void **)&index->pieces, index->piece_count, count, sizeof(*index->pieces));
	if (rc)
		return rc;
	while (bytes > 0) {
		uint64_t piece = SR_PIECE_BYTES - offset % SR_PIECE_BYTES;
		if (piece > bytes)
			piece = bytes;
		index->pieces[index->piece_count++] = sr_crc32c(0, payload, piece);
		payload += piece;
		offset += piece;
		bytes -= piece;
	}
	return 0;
}

static int add_entry(struct sr_index *index, const struct record *record, uint64_t at, const uint8_t *payload)
{
	if (record->length == 0 && record->type != SR_RESIZE)
		return 0;
	int rc = make_room((void **)&index->entries, index->entry_count, 1, sizeof(*index->entries));
	if (rc)
		return rc;
	index->entries[index->entry_count++] = (struct sr_entry){
		.position = record->position,
		.time_ns = record->time_ns,
		.offset = record->offset,
		.length = record->length,
		.payload_at = record->type == SR_WRITE ? at + SR_RECORD_HEADER_BYTES : 0,
		.first_piece = record->type == SR_WRITE ? (uint32_t)index->piece_count : 0,
		.type = record->type,
	};
	return record->type == SR_WRITE ? add_pieces(index, payload, record->offset, record->length) : 0;
}

/* Track the disk's size after the record. The first record that does not fit is recorded; the rest is still checked
 * for corruption. */
static void follow_size(struct sr_index *index, const struct record *record)
{
	uint64_t end = record->type == SR_RESIZE ? record->length : record->offset + record->length;
	int refusal = SR_FITS;
	if (record->type == SR_RESIZE && end % SR_DISK_SECTOR_BYTES)
		refusal = SR_PART_OF_SECTOR;
	else if (record->type == SR_RESIZE)
		refusal = end < index->size_after ? SR_SHRINKS : SR_FITS;
	else
		refusal = end > index->size_after ? SR_BEYOND : SR_FITS;
	if (refusal == SR_FITS) {
		if (record->type == SR_RESIZE)
			index->size_after = end;
	} else if (index->refusal == SR_FITS) {
		index->refusal = refusal;
		index->refused_seq = record->seq;
		index->refused_size = index->size_after;
		index->refused_to = end;
	}
}

static int add_record(struct sr_index *index, const struct record *record, uint64_t at, const uint8_t *payload)
{
	if (record->type == SR_FLUSH || record->type == SR_TAG)
		return 0;
	follow_size(index, record);
	return add_entry(index, record, at, payload);
}

/* Return 1 if a sound record begins there. */
static int parse(const uint8_t *raw, uint64_t bytes, uint32_t seed, struct record *record)
{
	if (bytes < sizeof(*record))
		return 0;
	memcpy(record, raw, sizeof(*record));
	if (record->magic != RECORD_MAGIC || record->payload_bytes > SR_PAYLOAD_BYTES_MAX ||
	    record->payload_bytes > bytes - sizeof(*record))
		return 0;
	uint32_t crc = sr_crc32c(seed, record, sizeof(*record) - sizeof(record->crc));
	return sr_crc32c(crc, raw + sizeof(*record), record->payload_bytes) == record->crc && is_sound(record);
}

int sr_index_segment(struct sr_index *index, const void *data, size_t bytes, uint32_t seed, uint64_t first_seq,
		     uint64_t size)
{
	const uint8_t *raw = data;
	struct record record;

	*index = (struct sr_index){.size_after = size, .next_seq = first_seq};
	if (bytes > UINT32_MAX) /* the numbers of its pieces would not fit */
		return -EFBIG;
	for (uint64_t at = SR_SEGMENT_HEADER_BYTES; at < bytes; at += sizeof(record) + record.payload_bytes) {
		index->is_bad = 1;
		index->bad_at = at;
		if (!parse(raw + at, bytes - at, seed, &record))
			return 0;
		int rc = record.type == SR_TAG ? add_tag(index, &record, at) : 0;
		if (rc)
			return rc;
		if (record.seq != index->next_seq || record.position < index->position)
			return 0;
		index->is_bad = 0;
		rc = add_record(index, &record, at, raw + at + sizeof(record));
		if (rc)
			return rc;
		if (index->records++ == 0)
			index->first_position = record.position;
		index->position = record.position;
		index->time_ns = record.time_ns;
		index->next_seq++;
	}
	return 0;
}

void sr_index_free(struct sr_index *index)
{
	free(index->entries);
	free(index->pieces);
	free(index->tags);
	*index = (struct sr_index){0};
}
