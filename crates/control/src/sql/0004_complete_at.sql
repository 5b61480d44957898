-- When Complete comes by itself (H17): a window as JSON.

alter table job add column complete_at text;
