"""Fingerprints are equal exactly when two tables hold the same rows."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from fix_servers import MakeDatabase, Pair, Servers, drop_database, majors, on_all_pairs
from fix_servers import connect as plainly
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import AsyncConnection, errors
from psycopg.rows import TupleRow

from pglockstep.compare import checksum
from pglockstep.compare.checksum import Fingerprint, comparable_columns, fingerprint
from pglockstep.errors import Inconclusive
from pglockstep.postgres.catalog import Column, Table, tables
from pglockstep.postgres.connect import End, connect
from pglockstep.postgres.names import QualifiedName
