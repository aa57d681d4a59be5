/*
 * Datagrams whose checksum is wrong: nobody may get them.
 *
 *   forged ADDRESS4 PORT COUNT
 *
 * A raw socket (raw(7)) sends UDP headers as they are. Needs CAP_NET_RAW.
 */
#include <arpa/inet.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	struct {
		struct udphdr header;
		char payload[32];
	} datagram = { .payload = "forged" };
	int raw, count;

	if (argc != 4 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1) {
		fprintf(stderr, "usage: forged ADDRESS4 PORT COUNT\n");
		return 2;
	}
	raw = socket(AF_INET, SOCK_RAW, IPPROTO_UDP);
	if (raw < 0) {
		perror("socket");
		return 1;
	}
	datagram.header.source = htons(40000);
	datagram.header.dest = htons(atoi(argv[2]));
	datagram.header.len = htons(sizeof(datagram));
	count = atoi(argv[3]);
	for (int i = 0; i < count; i++) {
		/* At most one of these is right. */
		datagram.header.check = htons(1 + i);
		if (sendto(raw, &datagram, sizeof(datagram), 0, (void *)&to, sizeof(to)) < 0) {
			perror("sendto");
			return 1;
		}
	}
	return 0;
}
