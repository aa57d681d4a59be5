/*
 * The stream side of the peer: TCP servers on fixed ports, which do Fast Open, and connections on
 * command.
 *
 * 7107 echoes until EOF. Nobody is at 7108. 7109 reads until the end. 7110 reads until EOF, then
 * sends 70000 bytes. 7111 reads one byte, then resets. 7112 reads one byte, pauses 100 ms, then
 * reads until the end. Every connection runs a script:
 *
 *   sN  send N bytes "abc..."     gN  read N bytes      w  read until EOF or an error
 *   e   echo until EOF            f   shutdown(WR)      pN pause N milliseconds
 *   uN  send N bytes, the last urgent   o  wait for an urgent byte, send it back as a normal one
 *   hold  wait for the command `go`       x   reset
 * At the end of the script the connection is closed.
 */
#ifndef STREAM_H
#define STREAM_H

#include <stddef.h>

/* Starts the servers. */
void stream_servers(const char *address4, const char *address6);
/* Connects to an address and runs the script, in a process of its own. */
void stream_dial(const char *host, int port, const char *script);
/* Lets one script that holds, or the next one that does, go on. */
void stream_go(void);
/* Waits until every connection on command has ended; writes how the last one ended. */
void stream_result(char *reply, size_t room);

#endif
