-- How fast a process server may send in all.

alter table component add column bandwidth text not null default '{}';   -- JSON
