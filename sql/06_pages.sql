-- Step 6: a page of the log costs what it holds, however large the commit that it belongs to.
--
-- Rows of a large commit are in the log before there are statistics of it, and the planner then likes to fetch all that is left of the
-- commit and to sort it, for every page: a million rows took a million times a thousand. The index gives them in their order.
alter function switchboard.read(bigint, bigint, bigint, integer, bigint) set enable_sort = off;
alter function switchboard.read(bigint, bigint, bigint, integer, bigint) set enable_bitmapscan = off;
alter function switchboard.read(bigint, bigint, bigint, integer, bigint) set enable_seqscan = off;
