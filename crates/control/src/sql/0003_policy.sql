-- Policies: the limits that items are kept to. Each item's row holds a copy of its policy's limits; both are changed in
-- one transaction.

create table policy (
    name text primary key,
    body text not null             -- JSON
);
