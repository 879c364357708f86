/* Segments with encrypted payloads (base/xts.h): of the journal of a managed disk, and of the log of an encrypted disk. The
 * checksums of the records are those of the encrypted bytes.
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

/* Turn a segment of an encrypted disk's log (format 2) into one of format 1 in place: the payloads of its WRITE records are
 * decrypted, and all checksums are set. Returns the number of bytes in good records, and the header: from there on the
 * segment is unchanged. -EINVAL: its header is torn; -EIO: libcrypto failed, and the segment is undefined. */
int64_t sr_decrypt_segment(struct sr_xts *xts, uint8_t *segment, size_t bytes);

#endif
