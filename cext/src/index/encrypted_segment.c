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
