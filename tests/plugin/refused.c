// SPDX-License-Identifier: MIT OR Apache-2.0
/* A driver that refuses to complete the checksums of some frames: those are dropped and counted,
 * and all others go. The driver is DPDK's net_null with a double of rte_eth_tx_prepare before it;
 * the plugin is compiled with it. */
#define _GNU_SOURCE
#define ALLOW_EXPERIMENTAL_API
#include <rte_ethdev.h>

static uint16_t refuse(uint16_t port, uint16_t queue, struct rte_mbuf **frames, uint16_t count);
#define rte_eth_tx_prepare refuse
#include "plugin.c"

enum { FRAMES = 9, BYTES = 60 };

/* Frames that end with a 1 are refused, as rte_eth_tx_prepare says it: how many are before them. */
static uint16_t refuse(uint16_t of, uint16_t queue, struct rte_mbuf **frames, uint16_t count)
{
	uint16_t ready = 0;

	(void)of;
	(void)queue;
	while (ready < count && !*rte_pktmbuf_mtod_offset(frames[ready], uint8_t *, BYTES - 1))
		ready++;
	return ready;
}

static uint64_t value(const char *name)
{
	static struct statistic all[XSTATS + 4];
	uint32_t count = statistics(all, RTE_DIM(all));

	for (uint32_t i = 0; i < count; i++)
		if (!strcmp(all[i].name, name))
			return all[i].value;
	printf("no %s\n", name);
	return UINT64_MAX;
}

int main(void)
{
	char *arguments[] = { "refused", "--no-huge", "--no-shconf", "-m", "64", "--no-pci",
	                      "--no-telemetry", "--vdev=net_null0", NULL };
	uint8_t frame[BYTES] = { 0 };
	struct facts facts;
	uint32_t left = 1;

	if (start(RTE_DIM(arguments) - 1, arguments) || open_port(&facts, 0)) {
		printf("%s\n", words());
		return 2;
	}
	/* What the driver says of itself does not matter: the double is asked. */
	offloads |= TX_CHECKSUMS;
	for (int i = 0; i < FRAMES; i++) {
		frame[BYTES - 1] = i == 0 || i == 4 || i == 5;
		if (send_frame(frame, BYTES))
			return 2;
	}
	/* One refusal ends a flush; the rest goes with the next. */
	for (int i = 0; i < FRAMES && left; i++)
		left = flush();
	printf("%u wait, %lu refused, %lu sent\n", left, value("tx_checksum_refused"),
	       value("tx_good_packets"));
	return left != 0 || value("tx_checksum_refused") != 3 || value("tx_good_packets") != FRAMES - 3;
}
