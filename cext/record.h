/* A change log's record as it lies in the file (docs/formats/hrl.md): little endian, as is every machine that this
 * runs on (crc32c.c). */
#ifndef SITERIG_RECORD_H
#define SITERIG_RECORD_H

#include <stdint.h>

#include "disk.h"

#define RECORD_MAGIC 0x52435253u
#define FLAG_CLEAN_CLOSE 1 /* on a FLUSH */

struct record {
	uint32_t magic;
	uint8_t type, flags;
	uint16_t header_bytes;
	uint64_t seq, position, time_ns, offset, length;
	uint32_t payload_bytes, zero0, zero1, crc;
};
_Static_assert(sizeof(struct record) == SR_RECORD_HEADER_BYTES, "layout of a record");

#endif
