/*
 * identity.c
 *	  Whether this database may send from this server
 *	  (outbox_kafka.identity_file).
 *
 * Every database with the extension has a random identity in a table that
 * pg_dump leaves out. A dump makes a database with another one; a copy by
 * CREATE DATABASE is told by the database's OID, which is stored with it. What
 * has the same identity is a copy of the server's files: a standby, a recovery
 * to a point in time, or a base backup that was brought up as a test system.
 * Nothing in the files tells these from the original, so something outside of
 * them has to: a file that the administrator puts only where the database shall
 * send from. It lies outside the data directory, or it would be copied along.
 *
 * The file holds no secret: others may read it, but not write it. It is looked
 * into before a producer is made, so when the relay starts, at each reload, and
 * again from time to time while it does not name the database.
 */
#include "postgres.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/fd.h"

#include "guc.h"
#include "identity.h"

#define IDENTITY_FILE_MAX_SIZE (64 * 1024)

/* Whether the file is where a copy of the data directory does not have it. */
static bool
is_outside(const char *path)
{
	char		file[PATH_MAX];
	char		directory[PATH_MAX];

	if (realpath(path, file) == NULL || realpath(DataDir, directory) == NULL)
		return true;			/* opening it will say what is wrong */
	return !path_is_prefix_of_path(directory, file);
}

/*
 * The content of an opened file, terminated, or NULL with the reason. The
 * checks look at what was opened, so links may lead to it.
 */
static char *
read_content(int fd, const char *path, char **reason)
{
	char	   *content;
	int			length = 0;
	int			n;
	struct stat st;

	if (fstat(fd, &st) != 0)
		*reason = psprintf("could not stat file \"%s\": %m", path);
	else if (!S_ISREG(st.st_mode))
		*reason = psprintf("\"%s\" is not a regular file", path);
	else if ((st.st_uid != geteuid() && st.st_uid != 0) ||
			 (st.st_mode & (S_IWGRP | S_IWOTH)) != 0)
		*reason = psprintf("file \"%s\" must be owned by the server's user or root, and writable by nobody else",
						   path);
	else if (st.st_size > IDENTITY_FILE_MAX_SIZE)
		*reason = psprintf("file \"%s\" is larger than %d bytes",
						   path, IDENTITY_FILE_MAX_SIZE);
	else
	{
		content = palloc(IDENTITY_FILE_MAX_SIZE + 1);
		while ((n = read(fd, content + length, IDENTITY_FILE_MAX_SIZE - length)) > 0)
			length += n;
		content[length] = '\0';
		if (n == 0)
			return content;
		*reason = psprintf("could not read file \"%s\": %m", path);
		pfree(content);
	}
	return NULL;
}

/* Whether a line of the content is the identity; what follows a # is a remark. */
static bool
names_identity(char *content, const char *identity)
{
	char	   *rest = NULL;

	for (char *line = strtok_r(content, "\n", &rest); line != NULL;
		 line = strtok_r(NULL, "\n", &rest))
	{
		size_t		length;

		line[strcspn(line, "#")] = '\0';
		line += strspn(line, " \t\r");
		length = strcspn(line, " \t\r");
		if (line[length + strspn(line + length, " \t\r")] != '\0')
			continue;
		line[length] = '\0';
		if (pg_strcasecmp(line, identity) == 0)
			return true;
	}
	return false;
}

char *
identity_problem(const char *identity)
{
	const char *path = guc_identity_file;
	char	   *reason = NULL;
	char	   *content = NULL;
	int			fd;

	if (path[0] == '\0')
		return NULL;

	/* nonblocking: opening a pipe must not wait for its writer */
	fd = BasicOpenFile(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		reason = psprintf("could not open file \"%s\": %m", path);
	else
	{
		if (is_outside(path))
			content = read_content(fd, path, &reason);
		else
			reason = psprintf("file \"%s\" is inside the data directory, a copy of the server would have it too",
							  path);
		close(fd);
	}

	if (content == NULL)
		return psprintf("outbox_kafka.identity_file: %s", reason);
	if (!names_identity(content, identity))
		reason = psprintf("outbox_kafka.identity_file: file \"%s\" does not name this database's identity %s",
						  path, identity);
	pfree(content);
	return reason;
}

void
identity_read(char *identity)
{
	Oid			types[1] = {OIDOID};
	Datum		values[1] = {ObjectIdGetDatum(MyDatabaseId)};
	static const char *const queries[] = {
		"SELECT identity FROM outbox.database_identity"
		" WHERE database_oid OPERATOR(pg_catalog.=) $1",
		"DELETE FROM outbox.database_identity",
		"INSERT INTO outbox.database_identity (identity, database_oid, made_at)"
		" VALUES (pg_catalog.gen_random_uuid(), $1, pg_catalog.now())"
		" RETURNING identity"
	};

	SPI_connect();
	if (SPI_execute_with_args(queries[0], 1, types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read outbox.database_identity");
	if (SPI_processed == 0 &&
		(SPI_execute(queries[1], false, 0) != SPI_OK_DELETE ||
		 SPI_execute_with_args(queries[2], 1, types, values, NULL, false, 1) != SPI_OK_INSERT_RETURNING))
		elog(ERROR, "could not write outbox.database_identity");
	strlcpy(identity,
			SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1),
			IDENTITY_LENGTH);
	SPI_finish();
}
