// SPDX-License-Identifier: MIT OR Apache-2.0
/* Frames that stay in a stack's chunks, over DPDK's net_null: each chunk is in one place, and the
 * memory of a stack that is gone is given back when the driver has nothing of it. The plugin is
 * compiled with it. */
#define _GNU_SOURCE
#define ALLOW_EXPERIMENTAL_API
#include <stdlib.h>
#include "plugin.c"

enum { CHUNK = 4096, HEAD = 256, CHUNKS = 256 };

static void must(int is_so, const char *what)
{
	if (is_so)
		return;
	printf("not so: %s\n", what);
	exit(1);
}

/* Frames come into the chunks that were given, and into no other; every second one is kept. */
static void come(uint8_t *base, uint8_t *has)
{
	struct frame frames[BURST];
	uint32_t count = receive(frames, BURST);

	must(count == BURST, "a burst");
	for (uint32_t i = 0; i < count; i++) {
		uint32_t chunk = frames[i].chunk;

		must(chunk < CHUNKS && has[chunk] == 1, "it came into a chunk that was given");
		must(frames[i].bytes == base + (uint64_t)CHUNK * chunk + HEAD, "behind the headroom");
		has[chunk] = i % 2 ? 1 : 0;
		frames[i].flags |= i % 2 ? 0 : KEPT;
	}
	release(frames);
	must(stock_count == BURST / 2 && current->held == 0, "those that were not kept are in stock");
}

/* Chunks that are sent are told of once. */
static void go(uint8_t *base)
{
	uint32_t told[BURST], seen[CHUNKS] = { 0 }, count;

	for (uint32_t i = 0; i < BURST; i++)
		must(!send_chunk(base + (uint64_t)CHUNK * i + HEAD, 60, i), "there is room");
	must(current->held == BURST && !left_count, "none has left yet");
	must(flush() == 0, "all go");
	count = chunks_left(told, BURST);
	for (uint32_t i = 0; i < count; i++)
		seen[told[i]]++;
	for (uint32_t i = 0; i < BURST; i++)
		must(seen[i] == 1, "each has left once");
	must(!chunks_left(told, BURST) && current->held == 0, "and no other");
}

/* A stack goes while the port has chunks: what comes into them is copied. */
static void leave(uint8_t *base, int32_t number)
{
	struct rte_mbuf *taken = NULL;
	uint32_t chunk = 7;

	supply(&chunk, 1);
	while (!taken || !buffer_of(taken)->region)
		taken = rte_pktmbuf_alloc(rx_pool);
	*rte_pktmbuf_mtod(taken, uint8_t *) = 42;
	taken->data_len = taken->pkt_len = 60;
	must(!is_left(number), "it is the stack's that is there");
	disown();
	must(!is_left(number), "the driver has a chunk");
	struct frame frame = { .chunk = NO_CHUNK };
	name_chunk(&frame, taken);
	must(frame.chunk == NO_CHUNK && *frame.bytes == 42, "the frame is what it was");
	must(frame.bytes < base || frame.bytes >= base + CHUNK * CHUNKS, "elsewhere");
	must(is_left(number), "nothing is with the driver");
	rte_pktmbuf_free(taken);
}

int main(void)
{
	char *arguments[] = { "in_place", "--no-huge", "--no-shconf", "-m", "64", "--no-pci",
	                      "--no-telemetry", "--vdev=net_null0", NULL };
	uint8_t *base = aligned_alloc(PAGE, CHUNK * CHUNKS), has[CHUNKS] = { 0 };
	struct facts facts;

	if (start(RTE_DIM(arguments) - 1, arguments) || open_port(&facts, 1)) {
		printf("%s\n", words());
		return 2;
	}
	must(!*facts.copies, facts.copies);
	int32_t number = adopt(base, CHUNK * CHUNKS, CHUNK, HEAD);
	must(number >= 0, "the memory is taken");
	for (uint32_t next = 0, count; next + BURST <= CHUNKS; next += count) {
		uint32_t chunks[BURST];

		count = wants();
		for (uint32_t i = 0; i < count; i++)
			has[chunks[i] = next + i] = 1;
		supply(chunks, count);
		come(base, has);
	}
	stock_count = 0;
	go(base);
	leave(base, number);
	must(adopt(base, CHUNK * CHUNKS, CHUNK, HEAD) == number, "its place is free");
	printf("each chunk in one place\n");
	return 0;
}
