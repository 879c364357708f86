/* A segment as the journal of a managed disk keeps it: its payloads are encrypted (base/xts.h), and the checksums of its
 * records are those of the encrypted bytes.
 */
#ifndef SITERIG_ENCRYPTED_SEGMENT_H
#define SITERIG_ENCRYPTED_SEGMENT_H

#include <stddef.h>
#include <stdint.h>

#include "base/xts.h"

/* Encrypt the payloads of all WRITE records of a verified segment in place, and set the checksums of all records.
 * Returns 0; -EINVAL if a record does not begin and end at multiples of SR_XTS_LINE_BYTES of the disk, or exceeds the
 * segment; -EIO if libcrypto failed. After an error the segment is undefined. */
int sr_encrypt_segment(struct sr_xts *xts, uint8_t *segment, size_t bytes);

#endif
