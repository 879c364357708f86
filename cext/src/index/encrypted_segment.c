#include "index/encrypted_segment.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "base/record.h"
#include "base/siterig.h"

int sr_encrypt_segment(struct sr_xts *xts, uint8_t *segment, size_t bytes)
{
	uint32_t seed;
	size_t at = SR_SEGMENT_HEADER_BYTES;
	int rc = 0;

	if (bytes < SR_SEGMENT_HEADER_BYTES)
		return -EINVAL;
	memcpy(&seed, segment + offsetof(struct segment_header, crc), sizeof(seed));
	while (at < bytes && rc == 0) {
		struct record record;
		uint8_t *payload = segment + at + SR_RECORD_HEADER_BYTES;

		if (bytes - at < SR_RECORD_HEADER_BYTES)
			return -EINVAL;
		memcpy(&record, segment + at, sizeof(record));
		if (record.payload_bytes > bytes - at - SR_RECORD_HEADER_BYTES)
			return -EINVAL;
		if (record.type == SR_WRITE)
			rc = sr_xts_encrypt(xts, payload, record.payload_bytes, record.offset);
		record.crc = sr_crc32c(sr_crc32c(seed, &record, offsetof(struct record, crc)), payload, record.payload_bytes);
		memcpy(segment + at, &record, sizeof(record));
		at += SR_RECORD_HEADER_BYTES + record.payload_bytes;
	}
	return rc;
}

/* The bytes of the record at `segment`, or 0 if it is torn, its checksum does not match, or it is not of an encrypted disk. */
static size_t good_record_bytes(const uint8_t *segment, size_t bytes, uint32_t seed, struct record *record)
{
	const uint8_t *payload = segment + SR_RECORD_HEADER_BYTES;

	if (bytes < SR_RECORD_HEADER_BYTES)
		return 0;
	memcpy(record, segment, sizeof(*record));
	if (record->magic != RECORD_MAGIC || record->payload_bytes > bytes - SR_RECORD_HEADER_BYTES)
		return 0;
	if (record->crc != sr_crc32c(sr_crc32c(seed, record, offsetof(struct record, crc)), payload, record->payload_bytes))
		return 0;
	if (record->type == SR_WRITE && record->payload_bytes && (record->offset | record->payload_bytes) % SR_XTS_LINE_BYTES)
		return 0;
	return SR_RECORD_HEADER_BYTES + record->payload_bytes;
}

int64_t sr_decrypt_segment(struct sr_xts *xts, uint8_t *segment, size_t bytes)
{
	struct segment_header header;
	struct record record;
	size_t at = SR_SEGMENT_HEADER_BYTES, length;

	if (bytes < SR_SEGMENT_HEADER_BYTES)
		return -EINVAL;
	memcpy(&header, segment, sizeof(header));
	const uint32_t old_seed = header.crc;
	if (old_seed != sr_crc32c(0, &header, offsetof(struct segment_header, crc)))
		return -EINVAL;
	header.version = 1;
	memset(header.key_id, 0, sizeof(header.key_id));
	const uint32_t seed = header.crc = sr_crc32c(0, &header, offsetof(struct segment_header, crc));
	memcpy(segment, &header, sizeof(header));
	while ((length = good_record_bytes(segment + at, bytes - at, old_seed, &record)) > 0) {
		uint8_t *payload = segment + at + SR_RECORD_HEADER_BYTES;
		int rc = record.type == SR_WRITE ? sr_xts_decrypt(xts, payload, record.payload_bytes, record.offset) : 0;

		if (rc)
			return rc;
		record.crc = sr_crc32c(sr_crc32c(seed, &record, offsetof(struct record, crc)), payload, record.payload_bytes);
		memcpy(segment + at, &record, sizeof(record));
		at += length;
	}
	return (int64_t)at;
}
