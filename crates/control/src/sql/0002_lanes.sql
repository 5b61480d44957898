-- A test failover and views stand beside an item: their jobs keep no job of the item waiting.

alter table job add column lane text not null default 'item';   -- item | test | views

drop index one_job_per_item;

-- One job at a time works in one lane of an item.
create unique index one_job_per_lane on job (item, lane) where ended_at_ms is null;
