/*
 * kafka_wake.c
 *	  A descriptor that any thread can make readable: an eventfd, or a pipe.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/eventfd.h>
#endif

#include "kafka_wake.h"

bool
kafka_wake_open(KafkaWake *wake)
{
#ifdef __linux__
	wake->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	wake->write_fd = wake->fd;
	return wake->fd >= 0;
#else
	int			fds[2];

	if (pipe(fds) != 0)
		return false;
	for (int i = 0; i < 2; i++)
	{
		fcntl(fds[i], F_SETFL, O_NONBLOCK);
		fcntl(fds[i], F_SETFD, FD_CLOEXEC);
	}
	wake->fd = fds[0];
	wake->write_fd = fds[1];
	return true;
#endif
}

void
kafka_wake_close(KafkaWake *wake)
{
	if (wake->write_fd >= 0 && wake->write_fd != wake->fd)
		close(wake->write_fd);
	if (wake->fd >= 0)
		close(wake->fd);
}

void
kafka_wake_set(const KafkaWake *wake)
{
	uint64_t	one = 1;
	ssize_t		rc;

	do
		rc = write(wake->write_fd, &one, sizeof(one));
	while (rc < 0 && errno == EINTR);
	/* full: it is readable already */
}

void
kafka_wake_clear(const KafkaWake *wake)
{
	uint64_t	buffer[64];
	ssize_t		rc;

	do
		rc = read(wake->fd, buffer, sizeof(buffer));
	while (rc == (ssize_t) sizeof(buffer) || (rc < 0 && errno == EINTR));
}
