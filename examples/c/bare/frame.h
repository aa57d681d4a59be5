/* An Ethernet frame with one IPv4 UDP datagram: offsets, checksums, and how to turn it round. */
#ifndef FRAME_H
#define FRAME_H

#include <arpa/inet.h>
#include <stdint.h>
#include <string.h>

enum {
    ETHERNET_BYTES = 14,
    HEADER_BYTES = 42,
    AT_TYPE = 12,
    AT_IP = 14,
    AT_IP_CHECKSUM = 24,
    AT_SOURCE = 26,
    AT_DESTINATION = 30,
    AT_SOURCE_PORT = 34,
    AT_DESTINATION_PORT = 36,
    AT_UDP_LENGTH = 38,
    AT_UDP_CHECKSUM = 40,
};

static inline void put16(char *at, uint16_t value)
{
    uint16_t wire = htons(value);
    memcpy(at, &wire, sizeof wire);
}

/* One's complement sum of big-endian words. */
static inline uint32_t sum16(const char *bytes, size_t length, uint32_t sum)
{
    const uint8_t *at = (const uint8_t *)bytes;
    for (; length > 1; length -= 2, at += 2)
        sum += (uint32_t)(at[0] << 8 | at[1]);
    return length ? sum + (uint32_t)(at[0] << 8) : sum;
}

static inline uint16_t finish_sum(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~(sum + (sum >> 16));
}

static inline void swap(char *left, char *right, size_t length)
{
    char keep[8];
    memcpy(keep, left, length);
    memcpy(left, right, length);
    memcpy(right, keep, length);
}

/* Makes a received frame its own answer. A zero UDP checksum means "none" in IPv4: what a veth
 * peer has put there is only the sum of the pseudo-header. */
static inline void turn_round(char *frame)
{
    swap(frame, frame + 6, 6);
    swap(frame + AT_SOURCE, frame + AT_DESTINATION, 4);
    swap(frame + AT_SOURCE_PORT, frame + AT_DESTINATION_PORT, 2);
    put16(frame + AT_UDP_CHECKSUM, 0);
}

#endif
