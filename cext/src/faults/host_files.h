/* The files of the host that fault rules are for: which system calls of the engine (base/io.h) a rule may meet.
 *
 * While rules are armed, every call of the engine is looked up in a table of files by device and inode: a call that no
 * rule can meet proceeds at once, any other one is given to a function that decides. A file that is not in the table is
 * given to it, too, with its first call, so that it is noted then.
 *
 * Fault contract: the table has no data of a file and is not durable. Without armed rules there is no hook, and no cost.
 * Threads: any, at any time; the deciding function is called without a lock of this file.
 */
#ifndef SITERIG_HOST_FILES_H
#define SITERIG_HOST_FILES_H

#include <stdint.h>

#include "base/io.h"

/* The calls on one file that a rule may meet. */
struct sr_host_file {
	uint64_t device, inode;
	uint32_t ops;        /* 1 << SR_IO_READ, ..., or'ed; 0: none */
	uint64_t start, end; /* only reads, writes and holes that touch this range; `end` is the byte after it */
};

/* Give calls that a rule may meet to `decide`; NULL: to nobody, and the table is empty. */
void sr_host_files_watch(sr_io_hook_fn decide);

/* Note a file, in place of an earlier note for its device and inode. -ENOMEM changes nothing. */
int sr_host_files_note(const struct sr_host_file *file);
/* The device and inode belong to another file from now on. */
void sr_host_files_forget(uint64_t device, uint64_t inode);
/* Every file is unknown again. */
void sr_host_files_forget_all(void);

#endif
