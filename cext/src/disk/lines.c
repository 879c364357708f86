#define _GNU_SOURCE
#include "disk/lines.h"

#include <string.h>

#include "layers/decrypted.h"

struct sr_lines sr_lines_of(uint64_t offset, uint64_t bytes)
{
	uint64_t before = offset % SR_XTS_LINE_BYTES, after = -(offset + bytes) % SR_XTS_LINE_BYTES;

	return (struct sr_lines){.offset = offset - before, .bytes = before + bytes + after, .before = before};
}

int sr_plain_read(struct sr_disk *disk, void *buf, uint64_t bytes, uint64_t offset)
{
	if (disk->xts)
		return sr_layer_read_decrypted(disk->layer, disk->xts, buf, bytes, offset);
	return sr_layer_read(disk->layer, buf, bytes, offset);
}

int sr_decrypt_lines(struct sr_disk *disk, void *lines, void *buf, uint64_t bytes, uint64_t offset)
{
	struct sr_lines around = sr_lines_of(offset, bytes);
	int rc = sr_xts_decrypt(disk->xts, lines, around.bytes, around.offset);

	if (rc == 0 && (char *)lines + around.before != (char *)buf)
		memcpy(buf, (char *)lines + around.before, bytes);
	return rc;
}
