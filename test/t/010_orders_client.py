"""What 010_orders.pl runs as an application in Python.

Publishes three orders in transactions of psycopg2 and rolls others back.
Prints a line "event id|key|payload" for each that was committed.
"""

import sys

import psycopg2
from psycopg2.extras import Json

PUBLISH = """
    WITH o AS (INSERT INTO orders VALUES (%(id)s, %(item)s, %(amount)s) RETURNING *)
    SELECT outbox.publish('orders.created', to_jsonb(o), key => o.id::text),
           o.id, to_jsonb(o)::text
    FROM o"""


def publish(cursor, number):
    cursor.execute(PUBLISH, {"id": number, "item": "Größe %d" % number, "amount": number})
    return "|".join(str(value) for value in cursor.fetchone())


def main():
    sys.stdout.reconfigure(encoding="utf-8")
    connection = psycopg2.connect(sys.argv[1])
    committed = []

    with connection, connection.cursor() as cursor:
        committed.append(publish(cursor, 101))
        committed.append(publish(cursor, 102))

    try:
        with connection, connection.cursor() as cursor:
            publish(cursor, 103)
            raise LookupError("the application changed its mind")
    except LookupError:
        pass

    # A value of the application's own, through the driver's types.
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT outbox.publish('orders.created', %s::jsonb, key => %s)",
            (Json({"id": 104}), "104"),
        )
        committed.append("%s|104|%s" % (cursor.fetchone()[0], '{"id": 104}'))

    connection.close()
    print("\n".join(committed))


main()
