-- Takes away the log, the functions and, with them, the triggers on every watched table. Tables of yours stay as they are.

drop schema if exists switchboard cascade;
