#define _GNU_SOURCE
#include "fuse/waiting_room.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>

enum { STACK_BYTES = 512 << 10 };

struct entry {
	struct entry *next;
	void (*function)(void *item);
	void *item;
};

struct sr_waiting_room {
	pthread_mutex_t lock; /* protects all fields */
	pthread_cond_t filled;
	struct entry *first, **last;
	int queued, idle, count;
	bool ending;
	pthread_attr_t attributes;
	pthread_t threads[SR_WAITING_MAX];
};

struct sr_waiting_room *sr_waiting_room_new(void)
{
	struct sr_waiting_room *room = calloc(1, sizeof(*room));
	cpu_set_t cpus;

	if (!room)
		return NULL;
	room->last = &room->first;
	pthread_mutex_init(&room->lock, NULL);
	pthread_cond_init(&room->filled, NULL);
	pthread_attr_init(&room->attributes);
	pthread_attr_setstacksize(&room->attributes, STACK_BYTES);
	/* Otherwise a thread would stay on the CPU of the one that starts it. */
	if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0)
		pthread_attr_setaffinity_np(&room->attributes, sizeof(cpus), &cpus);
	return room;
}

static struct entry *next_entry(struct sr_waiting_room *room)
{
	pthread_mutex_lock(&room->lock);
	room->idle++;
	while (!room->first && !room->ending)
		pthread_cond_wait(&room->filled, &room->lock);
	room->idle--;
	struct entry *entry = room->first;
	if (entry) {
		room->queued--;
		room->first = entry->next;
		if (!room->first)
			room->last = &room->first;
	}
	pthread_mutex_unlock(&room->lock);
	return entry;
}

static void *serve(void *arg)
{
	struct entry *entry;

	pthread_setname_np(pthread_self(), "disk-waits");
	while ((entry = next_entry(arg))) {
		entry->function(entry->item);
		free(entry);
	}
	return NULL;
}

int sr_waiting_room_put(struct sr_waiting_room *room, void (*function)(void *item), void *item)
{
	struct entry *entry = malloc(sizeof(*entry));
	int rc = 0;

	if (!entry)
		return -ENOMEM;
	*entry = (struct entry){.function = function, .item = item};
	pthread_mutex_lock(&room->lock);
	/* A thread that is waking up for an earlier entry still counts as idle. */
	if (room->idle <= room->queued && room->count < SR_WAITING_MAX &&
	    pthread_create(&room->threads[room->count], &room->attributes, serve, room) == 0)
		room->count++;
	if (room->count == 0) {
		rc = -EAGAIN;
		free(entry);
	} else {
		room->queued++;
		*room->last = entry;
		room->last = &entry->next;
		pthread_cond_signal(&room->filled);
	}
	pthread_mutex_unlock(&room->lock);
	return rc;
}

void sr_waiting_room_free(struct sr_waiting_room *room)
{
	if (!room)
		return;
	pthread_mutex_lock(&room->lock);
	room->ending = true;
	pthread_cond_broadcast(&room->filled);
	pthread_mutex_unlock(&room->lock);
	for (int i = 0; i < room->count; i++)
		pthread_join(room->threads[i], NULL);
	pthread_attr_destroy(&room->attributes);
	pthread_cond_destroy(&room->filled);
	pthread_mutex_destroy(&room->lock);
	free(room);
}
