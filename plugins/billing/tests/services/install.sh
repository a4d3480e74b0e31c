#!/bin/sh
# Gets what the tests marked "services" of this plugin need: PostgreSQL from Debian's packages, a Kafka broker's jars from
# Maven Central into $POINTSMAN_SERVICES (default ~/.cache/pointsman). Does nothing that is done already. The tests start
# and stop the servers themselves, and are skipped, with the reason, where one of them is missing.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${POINTSMAN_SERVICES:-$HOME/.cache/pointsman}
failed=0

if ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends postgresql ||
            failed=1
    else
        echo "PostgreSQL is missing: as root, apt-get install postgresql" >&2
        failed=1
    fi
fi

jars=$cache/kafka-3.9.1
if [ ! -e "$jars/complete" ]; then
    if command -v mvn >/dev/null && command -v java >/dev/null; then
        mkdir -p "$jars"
        if mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies -DoutputDirectory="$jars" -DincludeScope=runtime; then
            touch "$jars/complete"
        else
            failed=1
        fi
    else
        echo "A Kafka broker needs java 17 or newer and mvn: apt-get install openjdk-17-jre-headless maven" >&2
        failed=1
    fi
fi

exit $failed
