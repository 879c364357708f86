/* Changes of an encrypted disk by requests (base/xts.h).
 *
 * XTS encrypts each line of 16 bytes by itself, so a change of a part of a line is stored as a change of the line: the log's
 * record then has the whole line, too, and to write it again after a kill needs no key.
 */
#ifndef SITERIG_ENCRYPTED_H
#define SITERIG_ENCRYPTED_H

#include "disk/disk_internal.h"

/* sr_disk_write of an encrypted disk, and sr_disk_write_back if `may_pass_fence`. It takes disk->lock. */
int64_t sr_encrypted_write(struct sr_disk *disk, const void *buf, uint64_t bytes, uint64_t offset, int may_pass_fence);

/* sr_disk_zero of an encrypted disk, within the disk; needs disk->lock. A part of a line becomes zeros by a write. */
int sr_encrypted_zero(struct sr_disk *disk, int type, uint64_t offset, uint64_t bytes);

/* Release the cipher and the buffers. */
void sr_encrypted_end(struct sr_disk *disk);

#endif
