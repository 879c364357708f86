#define _GNU_SOURCE
#include "base/edge.h"

#include <stddef.h>
#include <sys/mman.h>

#include "base/mapped.h"

enum { PAGE_BYTES = 4096 };

void sr_edge_map(struct sr_edge *edge, int fd, uint64_t bytes)
{
	uint64_t offset = bytes ? (bytes - 1) / PAGE_BYTES * PAGE_BYTES : 0;

	if (edge->at || offset == 0)
		return;
	void *at = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_SHARED, fd, (off_t)offset);
	if (at == MAP_FAILED)
		return;
	(void)madvise(at, PAGE_BYTES, MADV_RANDOM); /* only that page is read */
	sr_mapped_prepare();
	*edge = (struct sr_edge){.at = at, .offset = offset};
}

void sr_edge_unmap(struct sr_edge *edge)
{
	if (edge->at)
		munmap((void *)edge->at, PAGE_BYTES);
	edge->at = NULL;
}

int sr_edge_is_there(const struct sr_edge *edge, uint64_t end)
{
	uint32_t any;
	return edge->at && end <= edge->offset && sr_mapped_load(edge->at, 1, &any) == 0;
}
