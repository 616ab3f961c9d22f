-- The functions of the watch. All run as our role whoever writes, and trust no search_path.
-- In the mode "watch" nothing that goes wrong here may reach the writer: he must not feel us.

-- Whether this session has shown that it is ours. Who acts as a replica does not come this far.
CREATE OR REPLACE FUNCTION pglockstep.is_ours() RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF coalesce(current_setting('pglockstep.token', true), '') = '' THEN
        RETURN false;
    END IF;
    RETURN EXISTS (SELECT FROM pglockstep.watch WHERE token = current_setting('pglockstep.token'));
END
$$;

-- Writes one thing down and wakes the listener. The numbers come from sequences, so that two serializable writers do
-- not meet here; beyond so many that nobody has dealt with, the number alone tells that there were more.
CREATE OR REPLACE FUNCTION pglockstep.note(
    operation text, schema_name text, table_name text, row_count bigint, object text, statement text
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    number bigint := nextval('pglockstep.foreign_write_number');
BEGIN
    IF number - (SELECT last_value FROM pglockstep.foreign_write_done) <= 10000 THEN
        INSERT INTO pglockstep.foreign_write VALUES (
            number, clock_timestamp(), pg_current_xact_id()::text::bigint, operation, schema_name, table_name,
            row_count, object, session_user, current_setting('application_name'), host(inet_client_addr()),
            left(statement, 4000)
        );
    END IF;
    -- A transaction that has notified cannot be prepared, and a full queue fails a commit: neither for our sake.
    -- Where transactions can be prepared the listener looks more often instead.
    IF current_setting('max_prepared_transactions') = '0' AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('pglockstep_foreign_write', '');
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION pglockstep.note_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    touched bigint;
BEGIN
    IF pglockstep.is_ours() THEN
        RETURN NULL;
    END IF;
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        SELECT count(*) INTO touched FROM new_rows;
    ELSIF TG_OP = 'DELETE' THEN
        SELECT count(*) INTO touched FROM old_rows;
    END IF;
    IF touched IS DISTINCT FROM 0 THEN
        PERFORM pglockstep.note(TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME, touched, NULL, NULL);
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION pglockstep.refuse_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT pglockstep.is_ours() THEN
        PERFORM pglockstep.refuse(format('%s of %I.%I', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME));
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION pglockstep.refuse(what text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = 'read_only_sql_transaction',
        MESSAGE = format(
            '%s is refused: pglockstep keeps this database identical to the source of link %L',
            what, (SELECT string_agg(name, ', ') FROM pglockstep.link)
        ),
        HINT = 'Write to the source instead; or ask whoever runs that link to set protect_target = "watch".';
END
$$;

-- What DDL has changed, but for what leaves the tables as they were and what is the session's own affair.
CREATE OR REPLACE FUNCTION pglockstep.changed_by_ddl(event text, tag text)
RETURNS TABLE (operation text, schema_name text, table_name text, object text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF tag IN (
        'REINDEX', 'REFRESH MATERIALIZED VIEW', 'GRANT', 'REVOKE', 'ALTER DEFAULT PRIVILEGES', 'COMMENT',
        'SECURITY LABEL'
    ) THEN
        RETURN;
    END IF;
    IF event = 'ddl_command_end' THEN
        RETURN QUERY
        SELECT c.command_tag, coalesce(n.nspname, c.schema_name)::text, r.relname::text, c.object_identity
        FROM pg_event_trigger_ddl_commands() AS c
        LEFT JOIN pg_index AS i ON c.classid = 'pg_class'::regclass AND i.indexrelid = c.objid
        LEFT JOIN pg_class AS r
            ON c.classid = 'pg_class'::regclass AND r.oid = coalesce(i.indrelid, c.objid)
            AND r.relkind IN ('r', 'p')
        LEFT JOIN pg_namespace AS n ON n.oid = r.relnamespace
        WHERE coalesce(c.schema_name, '') !~ '^pg_temp' AND NOT c.in_extension;
    ELSE
        RETURN QUERY
        SELECT tag, d.schema_name, CASE d.object_type WHEN 'table' THEN d.object_name END, d.object_identity
        FROM pg_event_trigger_dropped_objects() AS d
        WHERE (d.original OR d.object_type = 'table') AND NOT d.is_temporary
            AND coalesce(d.schema_name, '') !~ '^pg_temp';
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION pglockstep.note_ddl() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found record;
BEGIN
    IF pglockstep.is_ours() THEN
        RETURN;
    END IF;
    FOR found IN SELECT * FROM pglockstep.changed_by_ddl(TG_EVENT, TG_TAG) LOOP
        PERFORM pglockstep.note(
            found.operation, found.schema_name, found.table_name, NULL, found.object, current_query()
        );
    END LOOP;
EXCEPTION WHEN OTHERS THEN
    RETURN;
END
$$;

CREATE OR REPLACE FUNCTION pglockstep.refuse_ddl() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found record;
BEGIN
    IF pglockstep.is_ours() THEN
        RETURN;
    END IF;
    FOR found IN SELECT * FROM pglockstep.changed_by_ddl(TG_EVENT, TG_TAG) LOOP
        PERFORM pglockstep.refuse(found.operation || coalesce(' of ' || found.object, ''));
    END LOOP;
END
$$;

-- Whoever could call these could put a trigger of his own before them, and write down what never happened.
REVOKE ALL ON FUNCTION
    pglockstep.is_ours(), pglockstep.note(text, text, text, bigint, text, text), pglockstep.note_write(),
    pglockstep.refuse_write(), pglockstep.refuse(text), pglockstep.changed_by_ddl(text, text), pglockstep.note_ddl(),
    pglockstep.refuse_ddl()
FROM PUBLIC;
