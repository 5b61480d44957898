-- Tokens with which one host joins once, and the credentials that hosts then have; only hashes are kept. What is removed
-- stays as a row, so that a secret that was taken back is never taken again.

create table host_token (
    id            integer primary key autoincrement,
    hash          text not null unique,
    kind          text not null,      -- join | host
    site          text,
    host          text,               -- the name of the host that has it, or used it up
    made_at_ms    bigint not null,
    expires_at_ms bigint,
    used_at_ms    bigint,
    removed_at_ms bigint
);

-- The credential with which a component registered; none for an operator's token.
alter table component add column host bigint;

-- The one join token that every host had for ever.
delete from token where kind = 'join';
