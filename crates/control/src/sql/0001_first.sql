-- The first schema. Ids are TEXT, times are BIGINT milliseconds since 1970, documents are JSON as TEXT, so that the
-- same queries run on PostgreSQL.

create table setting (
    name  text primary key,
    value text not null
);

-- Only hashes of tokens are kept.
create table token (
    hash      text primary key,
    kind      text not null,          -- admin | join | component
    component text unique
);

create table component (
    name         text primary key,
    registration text not null,       -- JSON
    seen_at_ms   bigint not null,
    list_number  bigint not null,     -- the number of the last list of replications that was made for it
    list_digest  text not null,
    statuses     text not null,       -- JSON, as last told
    machines     text not null        -- JSON, as last told
);

create table item (
    name    text primary key,
    version bigint not null,          -- for compare-and-swap
    body    text not null             -- JSON
);

create table job (
    id              integer primary key autoincrement,
    item            text not null,
    operation       text not null,    -- JSON
    plan            text not null,    -- JSON: the steps as they were planned
    state           text not null,    -- JSON string
    notes           text not null,    -- JSON: what steps tell later steps
    figures         text not null,    -- JSON
    fault           text,             -- JSON
    next            text,
    cancel          bigint not null,  -- somebody wants it to end
    complete        bigint not null,  -- somebody said Complete
    past_return     bigint not null,  -- the point of no return was passed
    idempotency_key text unique,
    started_at_ms   bigint not null,
    ended_at_ms     bigint
);

-- One job at a time works on an item.
create unique index one_job_per_item on job (item) where ended_at_ms is null;

create table job_log (
    job    bigint not null,
    seq    bigint not null,
    step   bigint not null,
    record text not null,             -- started | done | skipped | failed | undo_started | undone
    detail text,
    at_ms  bigint not null,
    primary key (job, seq)
);

create table work_order (
    id         text primary key,
    number     bigint not null,       -- order in which they were given
    component  text not null,
    item       text not null,
    body       text not null,         -- JSON
    cancelled  bigint not null,
    state      text not null,         -- open | done | failed | withdrawn
    result     text                   -- JSON: Outcome or Fault
);
create index open_orders on work_order (component, state);

create table audit (
    id     integer primary key autoincrement,
    at_ms  bigint not null,
    item   text,
    what   text not null,
    reason text
);
