-- Understudy's database, whole, in reading order.
--
-- PostgreSQL is the truth. Actors are views of single rows: one that is late, or dead, makes nothing
-- wrong. So everything that must never be wrong is said here, where every writer has to pass: which
-- moves a task may make, who may hold it, that nothing moves without an event. Python has the same
-- table (core/lifecycle.py), for people and for a test that compares the two; this file refuses.
--
-- A new database gets this file. An old one gets the numbered files of store/migrations/ that it
-- lacks; a test proves that both ways end at the same schema.
--
-- Conventions: ids and claim tokens are made by the caller, so that a simulation can seed them.
-- Times are aware and read in one place. Texts that are one of few have a check, not an enum: a
-- check can change inside a transaction. No extension is used.

create schema understudy;

-- The time, or the time that a test has set for its session. It moves on within a transaction:
-- a statement that waited for a lock judges expiry by the time after the wait.
create function understudy.now() returns timestamptz language plpgsql stable as $$
begin
  return coalesce(
    nullif(current_setting('understudy.fake_now', true), '')::timestamptz, clock_timestamp());
end $$;


-- 1. People and places ---------------------------------------------------------------------------

create table understudy.users (
  id         uuid primary key,
  email      text not null unique check (email = lower(email)),
  name       text not null,
  created_at timestamptz not null default understudy.now()
);

-- The tenant: members, agents, issues, runtimes and tokens belong to exactly one.
create table understudy.workspaces (
  id            uuid primary key,
  slug          text not null unique check (slug ~ '^[a-z0-9][a-z0-9-]{0,47}$'),
  name          text not null,
  issue_prefix  text not null default 'UND' check (issue_prefix ~ '^[A-Z][A-Z0-9]{1,7}$'),
  issue_counter int not null default 0,   -- the number of the newest issue
  repository    text,                     -- where work happens unless the issue names another
  settings      jsonb not null default '{}',
  created_at    timestamptz not null default understudy.now()
);

create table understudy.members (
  workspace_id uuid not null references understudy.workspaces on delete cascade,
  user_id      uuid not null references understudy.users on delete cascade,
  role         text not null default 'member' check (role in ('owner', 'admin', 'member')),
  created_at   timestamptz not null default understudy.now(),
  primary key (workspace_id, user_id)
);

-- Serves: the workspaces of a user.
create index members_of_user on understudy.members (user_id);


-- 2. Agents and the machines they run on -----------------------------------------------------------

-- One (workspace, daemon, provider): what a task runs on. While it lives, its liveness is in its
-- actor's memory (R4.3); the row changes only when it comes, goes or is refitted.
create table understudy.runtimes (
  id            uuid primary key,
  workspace_id  uuid not null references understudy.workspaces on delete cascade,
  daemon_id     text not null,           -- stable across restarts of the daemon
  incarnation   text,                    -- new at each start of the daemon
  recovered_for text,                    -- the incarnation for which what earlier ones left was given up (R6.2)
  provider      text not null,
  name          text not null,
  device_name   text not null default '',
  device_info   text not null default '',
  status        text not null check (status in ('online', 'offline')),
  problem       text,                    -- why the CLI cannot run, with the repair (R9.4)
  metadata      jsonb not null default '{}',
  last_seen_at  timestamptz not null,
  online_since  timestamptz,
  offline_since timestamptz,
  node_id       uuid,                    -- the server node that hears and judges it (R4.3); null: it is silent
  quota_resets_at timestamptz,           -- until then its account has nothing left to spend (R5.2)
  retired_at    timestamptz,             -- removed (R4.9); the row stays for the history
  created_at    timestamptz not null default understudy.now(),
  unique (workspace_id, daemon_id, provider),   -- the same runtime is updated, never doubled
  constraint offline_since_iff_offline check ((status = 'offline') = (offline_since is not null)),
  constraint online_since_iff_online check ((status = 'online') = (online_since is not null)),
  constraint retired_is_offline check (retired_at is null or status = 'offline')
);

-- Serves: lose and retire, whose work waits for nobody; offline, whom a dead node attended.
create index runtimes_offline on understudy.runtimes (offline_since)
  where status = 'offline' and retired_at is null;
create index runtimes_online on understudy.runtimes (workspace_id, provider) where status = 'online';

create table understudy.agents (
  id                   uuid primary key,
  workspace_id         uuid not null references understudy.workspaces on delete cascade,
  name                 text not null check (name ~ '^[[:alnum:]][[:alnum:] ._-]{0,63}$'),
  provider             text not null,
  runtime_id           uuid references understudy.runtimes on delete set null,  -- null: any of the provider
  instructions         text not null default '',
  model                text,
  custom_args          jsonb not null default '[]' check (jsonb_typeof(custom_args) = 'array'),
  custom_env           jsonb not null default '{}' check (jsonb_typeof(custom_env) = 'object'),
  mcp_config           jsonb,
  max_concurrent_tasks int not null default 6 check (max_concurrent_tasks between 1 and 1000),
  archived_at          timestamptz,
  created_at           timestamptz not null default understudy.now(),
  updated_at           timestamptz not null default understudy.now()
);

-- Serves: an agent by its name, which people type in any case; and that a name means one agent.
create unique index agents_by_name on understudy.agents (workspace_id, lower(name))
  where archived_at is null;

-- Serves: retire, is an agent bound to this runtime?
create index agents_by_runtime on understudy.agents (runtime_id) where runtime_id is not null;

-- Serves: claim, the agents whose tasks a runtime may run.
create index agents_by_provider on understudy.agents (workspace_id, provider)
  where archived_at is null;


-- 3. Work ------------------------------------------------------------------------------------------

create table understudy.issues (
  id                uuid primary key,
  workspace_id      uuid not null references understudy.workspaces on delete cascade,
  number            int not null,
  title             text not null check (length(title) between 1 and 500),
  description       text not null default '',
  status            text not null default 'todo'
                    check (status in ('backlog', 'todo', 'in_progress', 'in_review', 'done', 'cancelled')),
  priority          smallint not null default 0 check (priority between 0 and 4),   -- none .. urgent
  repository        text,
  assignee_user_id  uuid references understudy.users on delete set null,
  assignee_agent_id uuid references understudy.agents on delete set null,
  creator_user_id   uuid references understudy.users on delete set null,
  created_at        timestamptz not null default understudy.now(),
  updated_at        timestamptz not null default understudy.now(),
  unique (workspace_id, number),
  constraint one_assignee check (num_nonnulls(assignee_user_id, assignee_agent_id) <= 1)
);

-- Serves: the board.
create index issues_by_change on understudy.issues (workspace_id, updated_at desc, number desc);

-- One attempt of one agent at one trigger. A retry or rerun is a new row; none is ever re-opened.
create table understudy.tasks (
  id                  uuid primary key,
  workspace_id        uuid not null references understudy.workspaces on delete cascade,
  issue_id            uuid references understudy.issues on delete cascade,
  agent_id            uuid not null references understudy.agents on delete cascade,
  runtime_id          uuid references understudy.runtimes on delete set null,   -- null: any of the provider
  provider            text not null,
  status              text not null check (status in
                      ('deferred', 'queued', 'dispatched', 'running', 'completed', 'failed', 'cancelled')),
  move                text not null,       -- the move that brought the row here; understudy.is_move
  trigger             text not null check (trigger in
                      ('assign', 'comment', 'mention', 'rerun', 'schedule')),   -- a retry has its parent's
  trigger_comment_id  uuid,
  priority            smallint not null default 0 check (priority between 0 and 4),
  rank                timestamptz not null,          -- its place in the queue: see guard_move
  attempt             int not null default 1 check (attempt >= 1),
  max_attempts        int not null default 2 check (max_attempts >= 1),
  parent_task_id      uuid references understudy.tasks on delete set null,
  retry_task_id       uuid,                -- the child that was born when this one failed (R5.4)
  is_fresh            boolean not null default false,   -- continues no session (R7.6)
  hops                smallint not null default 0,   -- agents that called agents, up to this one (R10.1)
  host_crashes        smallint not null default 0,   -- how often its host went down under it (R6.10)
  context             jsonb not null default '{}',
  queued_at           timestamptz,         -- since when it waits in the queue
  fire_at             timestamptz,         -- deferred until then
  deferred_for        text check (deferred_for in ('backoff', 'provider', 'quota', 'storm', 'schedule')),
  claim_token         uuid,                -- the fence: new at every claim, kept to the end (R3.4, R6.6)
  fence               text not null default 'none' check (fence in ('none', 'lease', 'full')),   -- R3.6, R3.13
  claim_expires_at    timestamptz,
  cancel_requested_at timestamptz,         -- the first phase of R7.1
  cancel_requested_by uuid,
  progress            jsonb,
  session_id          text,
  work_dir            text,
  result              jsonb,
  error               text,
  failure_reason      text,
  created_at          timestamptz not null default understudy.now(),
  dispatched_at       timestamptz,
  started_at          timestamptz,
  completed_at        timestamptz,         -- the end, whichever it was
  constraint deferred_until_when check (status <> 'deferred' or (fire_at is not null and deferred_for is not null)),
  constraint lease_only_while_dispatched check (status = 'dispatched' or claim_expires_at is null),
  constraint dispatched_has_a_lease check (status <> 'dispatched' or claim_expires_at is not null),
  constraint queued_has_no_token check (status not in ('deferred', 'queued') or claim_token is null),
  constraint in_flight_has_a_runtime check (status not in ('dispatched', 'running') or runtime_id is not null),
  constraint end_iff_terminal check ((status in ('completed', 'failed', 'cancelled')) = (completed_at is not null)),
  constraint reason_iff_unsuccessful check ((status in ('failed', 'cancelled')) = (failure_reason is not null)),
  constraint fenced_by_a_token check (claim_token is not null or fence = 'none')
) with (fillfactor = 85);

-- R2.5: at most one pending row per (issue, agent). Also serves: does one wait already?
create unique index tasks_one_pending on understudy.tasks (issue_id, agent_id)
  where status in ('queued', 'dispatched');

-- Serves: claim, an agent's queued tasks in order.
create index tasks_claimable on understudy.tasks (agent_id, rank, id) where status = 'queued';

-- Serves: expire, what has waited for too long. The second condition is always true: it keeps claims
-- from this index, to which a queue looks as short as it was when they were planned.
create index tasks_queued_since on understudy.tasks (queued_at)
  where status = 'queued' and queued_at is not null;

-- Serves: promote, what is due.
create index tasks_deferred on understudy.tasks (fire_at) where status = 'deferred';

-- Serves: plan_retry, how far the line of held-back retries reaches.
create index tasks_held_back on understudy.tasks (workspace_id, fire_at)
  where status = 'deferred' and deferred_for = 'storm';

-- Serves: plan_retry, how many retries there were in the last minute.
create index tasks_retried on understudy.tasks (workspace_id, created_at) where attempt > 1;

-- Serves: claim, how many tasks an agent runs, and whether on this issue (R3.3).
create index tasks_in_flight_of_agent on understudy.tasks (agent_id, issue_id)
  where status in ('dispatched', 'running');

-- Serves: late results, the attempts that followed (R6.5).
create index tasks_of_parent on understudy.tasks (parent_task_id) where parent_task_id is not null;

-- Serves: preflight requeue, recovery and the sweeps: what a runtime holds, and what waits for it alone.
create index tasks_active_of_runtime on understudy.tasks (runtime_id, status)
  where runtime_id is not null and status in ('deferred', 'queued', 'dispatched', 'running');

-- Serves: the runs of an issue, newest first.
create index tasks_of_issue on understudy.tasks (issue_id, created_at desc);

-- Serves: the runs of a workspace, newest first.
create index tasks_of_workspace on understudy.tasks (workspace_id, created_at desc);

-- What an agent said and did, as its CLI printed it. Unique by (task, seq): a batch may be sent twice.
create table understudy.task_messages (
  task_id    uuid not null references understudy.tasks on delete cascade,
  seq        int not null check (seq >= 0),
  type       text not null check (type in ('text', 'thinking', 'tool_use', 'tool_result', 'error')),
  tool       text,
  content    text,
  input      jsonb,
  output     text,
  created_at timestamptz not null default understudy.now(),
  primary key (task_id, seq)
);

create table understudy.usage (
  task_id            uuid not null references understudy.tasks on delete cascade,
  provider           text not null,
  model              text not null,
  input_tokens       bigint not null default 0 check (input_tokens >= 0),
  output_tokens      bigint not null default 0 check (output_tokens >= 0),
  cache_read_tokens  bigint not null default 0 check (cache_read_tokens >= 0),
  cache_write_tokens bigint not null default 0 check (cache_write_tokens >= 0),
  primary key (task_id, provider, model)
);

create table understudy.comments (
  id              uuid primary key,
  workspace_id    uuid not null references understudy.workspaces on delete cascade,
  issue_id        uuid not null references understudy.issues on delete cascade,
  author_user_id  uuid references understudy.users on delete set null,
  author_agent_id uuid references understudy.agents on delete set null,
  task_id         uuid references understudy.tasks on delete set null,   -- the run that wrote it
  body            text not null check (body <> ''),
  created_at      timestamptz not null default understudy.now(),
  constraint one_author check (num_nonnulls(author_user_id, author_agent_id) <= 1)
);

-- Serves: the conversation of an issue.
create index comments_of_issue on understudy.comments (issue_id, created_at);

-- Serves: did this run comment? (R10.3)
create index comments_of_task on understudy.comments (task_id) where task_id is not null;

-- Which agents a comment calls, and the task that answers; null while it waits for a run to end.
-- So a comment is heard at least once, however many come, and whatever becomes of a run (R10.2).
create table understudy.calls (
  comment_id uuid not null references understudy.comments on delete cascade,
  agent_id   uuid not null references understudy.agents on delete cascade,
  issue_id   uuid not null,              -- the comment's
  task_id    uuid references understudy.tasks on delete set null,
  hops       smallint not null default 0,
  created_at timestamptz not null default understudy.now(),
  primary key (comment_id, agent_id)
);

-- Serves: the end of a run, who called meanwhile.
create index calls_waiting on understudy.calls (issue_id, agent_id) where task_id is null;

-- Serves: claim, what the agent is told; and retries, which inherit it.
create index calls_of_task on understudy.calls (task_id) where task_id is not null;

-- Sessions that a CLI refused to continue: never offered again (R5.10).
create table understudy.refused_sessions (
  workspace_id uuid not null references understudy.workspaces on delete cascade,
  session_id   text not null,
  created_at   timestamptz not null default understudy.now(),
  primary key (workspace_id, session_id)
);


-- 4. Keys ------------------------------------------------------------------------------------------

-- Only the SHA-256 of a token is kept. `login` is the one-time link, `session` the browser's cookie,
-- `personal` a person's key, `daemon` a machine's. An agent's follows from its claim, and dies with
-- it (R9.5, store/tokens.py).
create table understudy.tokens (
  id           uuid primary key,
  kind         text not null check (kind in ('login', 'session', 'personal', 'daemon')),
  hash         bytea not null unique,
  name         text not null default '',
  user_id      uuid references understudy.users on delete cascade,
  workspace_id uuid references understudy.workspaces on delete cascade,
  created_at   timestamptz not null default understudy.now(),
  expires_at   timestamptz,
  revoked_at   timestamptz,
  constraint owner_by_kind check (case kind
    when 'daemon' then workspace_id is not null
    else user_id is not null end)
);


-- 5. Events ----------------------------------------------------------------------------------------

-- What happened, for streams and for people. Written in the transaction of the change itself (R2.4):
-- by the triggers below, and by store/runtimes.py for `daemon:register`, which is of many rows. Ids are drawn after the row lock of the thing they speak of is held,
-- so two events of one thing are in the order of their commits; readers hold back at a gap until
-- the transaction that drew the missing id has ended (store/events.py). No foreign keys: the record
-- outlives what it speaks of, and hot parents stay unlocked.
create table understudy.events (
  id           bigint generated always as identity primary key,
  workspace_id uuid not null,
  kind         text not null,
  issue_id     uuid,
  task_id      uuid,
  payload      jsonb not null,
  created_at   timestamptz not null default understudy.now()
);

-- Serves: a stream that continues after Last-Event-ID.
create index events_of_workspace on understudy.events (workspace_id, id);

-- Server nodes that share this database, each with a lease of its own (R4.3). A node judges others'
-- runtimes only when it has held its lease without a gap for as long as they have to come back (R4.4).
create table understudy.nodes (
  id               uuid primary key,      -- new at each start
  address          text not null,
  started_at       timestamptz not null default understudy.now(),
  lease_since      timestamptz not null,
  lease_expires_at timestamptz not null
);


-- 6. What no writer can do -------------------------------------------------------------------------

-- The table of moves, made from core/lifecycle.py (guard_sql); '' stands for "no row yet".
create function understudy.is_move(made_by text, leaves text, enters text) returns boolean
language sql immutable as $$
  select (made_by, leaves, enters) in (
    ('enqueue', '', 'queued'),
    ('defer', '', 'deferred'),
    ('promote', 'deferred', 'queued'),
    ('claim', 'queued', 'dispatched'),
    ('requeue', 'dispatched', 'queued'),
    ('start', 'dispatched', 'running'),
    ('complete', 'running', 'completed'),
    ('complete_late', 'failed', 'completed'),
    ('fail', 'dispatched', 'failed'),
    ('fail', 'running', 'failed'),
    ('orphan', 'dispatched', 'failed'),
    ('orphan', 'running', 'failed'),
    ('lose', 'dispatched', 'failed'),
    ('lose', 'running', 'failed'),
    ('time_out', 'dispatched', 'failed'),
    ('time_out', 'running', 'failed'),
    ('expire', 'queued', 'failed'),
    ('cancel', 'deferred', 'cancelled'),
    ('cancel', 'dispatched', 'cancelled'),
    ('cancel', 'queued', 'cancelled'),
    ('cancel', 'running', 'cancelled')
  )
$$;

create function understudy.guard_move() returns trigger language plpgsql as $$
declare
  leaves text := '';
begin
  if tg_op = 'UPDATE' then
    leaves := old.status;
  else
    -- Ageing (R3.2): each priority is worth a quarter of an hour of waiting, so that nothing starves.
    new.rank := coalesce(new.rank, new.created_at - new.priority * interval '15 minutes');
  end if;
  if new.status = 'queued' then
    new.queued_at := understudy.now();
  end if;
  if not understudy.is_move(new.move, leaves, new.status) then
    raise exception 'illegal move: % from % to % (task %)', new.move, leaves, new.status, new.id
      using errcode = 'check_violation';
  end if;
  return new;
end $$;

create trigger task_is_born before insert on understudy.tasks
  for each row execute function understudy.guard_move();
create trigger task_moves before update on understudy.tasks
  for each row when (old.status is distinct from new.status)
  execute function understudy.guard_move();

create function understudy.record_task() returns trigger language plpgsql as $$
begin
  insert into understudy.events (workspace_id, kind, issue_id, task_id, payload)
  values (
    new.workspace_id,
    case new.status
      when 'dispatched' then 'task:dispatch'
      else 'task:' || new.status
    end,
    new.issue_id, new.id,
    jsonb_build_object(
      'task_id', new.id, 'issue_id', new.issue_id, 'agent_id', new.agent_id,
      'runtime_id', new.runtime_id, 'provider', new.provider, 'status', new.status, 'move', new.move,
      'attempt', new.attempt, 'failure_reason', new.failure_reason,
      'retry_pending', new.status = 'failed' and new.retry_task_id is not null,
      'retry_task_id', new.retry_task_id));
  return null;
end $$;

create trigger task_born_event after insert on understudy.tasks
  for each row execute function understudy.record_task();
create trigger task_moved_event after update on understudy.tasks
  for each row when (old.status is distinct from new.status)
  execute function understudy.record_task();

-- The first phase of a cancellation is no move, but nobody may miss it (R7.1).
create function understudy.record_cancelling() returns trigger language plpgsql as $$
begin
  insert into understudy.events (workspace_id, kind, issue_id, task_id, payload)
  values (new.workspace_id, 'task:cancelling', new.issue_id, new.id, jsonb_build_object(
    'task_id', new.id, 'issue_id', new.issue_id, 'agent_id', new.agent_id,
    'runtime_id', new.runtime_id, 'status', new.status));
  return null;
end $$;

create trigger task_cancelling_event after update on understudy.tasks
  for each row when (old.cancel_requested_at is null and new.cancel_requested_at is not null)
  execute function understudy.record_cancelling();

create function understudy.record_progress() returns trigger language plpgsql as $$
begin
  insert into understudy.events (workspace_id, kind, issue_id, task_id, payload)
  values (new.workspace_id, 'task:progress', new.issue_id, new.id,
          jsonb_build_object('task_id', new.id, 'issue_id', new.issue_id) || new.progress);
  return null;
end $$;

create trigger task_progress_event after update on understudy.tasks
  for each row when (new.progress is distinct from old.progress and new.progress is not null)
  execute function understudy.record_progress();

create function understudy.record_issue() returns trigger language plpgsql as $$
declare
  it understudy.issues := coalesce(new, old);
begin
  insert into understudy.events (workspace_id, kind, issue_id, payload)
  values (
    it.workspace_id,
    case tg_op when 'INSERT' then 'issue:created' when 'UPDATE' then 'issue:updated' else 'issue:deleted' end,
    it.id,
    jsonb_build_object(
      'issue_id', it.id, 'number', it.number, 'status', it.status, 'title', it.title,
      'assignee_user_id', it.assignee_user_id, 'assignee_agent_id', it.assignee_agent_id));
  return null;
end $$;

create trigger issue_event after insert or update or delete on understudy.issues
  for each row execute function understudy.record_issue();

create function understudy.record_comment() returns trigger language plpgsql as $$
declare
  it understudy.comments := coalesce(new, old);
begin
  insert into understudy.events (workspace_id, kind, issue_id, task_id, payload)
  values (
    it.workspace_id,
    case tg_op when 'INSERT' then 'comment:created' when 'UPDATE' then 'comment:updated' else 'comment:deleted' end,
    it.issue_id, it.task_id,
    jsonb_build_object('comment_id', it.id, 'issue_id', it.issue_id, 'task_id', it.task_id));
  return null;
end $$;

create trigger comment_event after insert or update or delete on understudy.comments
  for each row execute function understudy.record_comment();


-- 7. The moves -------------------------------------------------------------------------------------
--
-- Each is one round trip and one transaction: the guarded statement first, then everything that must
-- be true with it. Where no row was moved, the newest row is read to say why: a function's next
-- statement sees what was committed while the first one waited. Outcomes:
--   moved      done now
--   replayed   done before by the same token; nothing was repeated (R3.5, R6.6)
--   fenced     another token holds it, or its claim has expired, or it has ended otherwise
--   not_found  no such task in this workspace
-- Functions that answer otherwise say so.
--
-- A null token acts only on a row without one (R3.6): `is not distinct from` says so.
--
-- Locks are taken in one order: issues by id, their tasks, and agents by id last. So an assignment
-- that waits for the pending row of a task that is being started cannot hold what the start waits for;
-- and of two runs that end together, the second sees the first ended when it asks whether others go on.
-- A claim begins with the agents; it never waits for a task's lock, so it closes no circle.
--
-- Ids of what follows by itself (a retry, an answer to a comment) are derived from what it follows:
-- made twice it would be the same row.

create function understudy.derived_id(p_from uuid, p_for text) returns uuid
language sql immutable as $$ select md5(p_from::text || p_for)::uuid $$;


-- 7.1 Into the queue

create function understudy.enqueue_task(
  p_id uuid, p_issue understudy.issues, p_agent understudy.agents, p_trigger text,
  p_comment uuid default null, p_hops int default 0, p_parent uuid default null, p_is_fresh boolean default false
) returns setof understudy.tasks language plpgsql as $$
begin
  return query
  insert into understudy.tasks
    (id, workspace_id, issue_id, agent_id, runtime_id, provider, status, move, trigger, priority,
     trigger_comment_id, hops, parent_task_id, is_fresh)
  values
    (p_id, p_issue.workspace_id, p_issue.id, p_agent.id, p_agent.runtime_id, p_agent.provider,
     'queued', 'enqueue', p_trigger, p_issue.priority, p_comment, p_hops, p_parent, p_is_fresh)
  on conflict (issue_id, agent_id) where status in ('queued', 'dispatched') do nothing
  returning *;
end $$;

-- How many agents have called one another, once the run `p_task` calls the next; 0 for a person.
-- Beyond the budget nothing starts: two agents that answer each other would never end.
create function understudy.hops_after(p_task uuid) returns int language plpgsql stable as $$
begin
  return coalesce((select t.hops + 1 from understudy.tasks t where t.id = p_task), 0);
end $$;

create function understudy.hops_max() returns int language sql immutable as $$ select 8 $$;

-- R10.1. `p_by` is the task of the agent that assigns, null for a person. Outcomes: enqueued;
-- assigned (the issue is in the backlog); unchanged; pending (this agent is at it already); self (an
-- agent took the issue it is working on); too_many_hops; issue_not_found; agent_not_found.
create function understudy.assign_to_agent(
  p_workspace uuid, p_issue uuid, p_agent uuid, p_task uuid, p_by uuid default null
) returns table (outcome text, task understudy.tasks) language plpgsql as $$
declare
  it understudy.issues;
  agent understudy.agents;
  hops int := understudy.hops_after(p_by);
begin
  select * into it from understudy.issues where id = p_issue and workspace_id = p_workspace for no key update;
  if not found then
    outcome := 'issue_not_found'; return next; return;
  end if;
  select * into agent from understudy.agents
    where id = p_agent and workspace_id = p_workspace and archived_at is null;
  if not found then
    outcome := 'agent_not_found'; return next; return;
  end if;
  if it.assignee_agent_id = p_agent then
    outcome := 'unchanged'; return next; return;
  end if;
  update understudy.issues
    set assignee_agent_id = p_agent, assignee_user_id = null, updated_at = understudy.now()
    where id = p_issue returning * into it;
  outcome := case
    when it.status = 'backlog' then 'assigned'
    when exists (select from understudy.tasks t where t.id = p_by and t.agent_id = p_agent
                 and t.issue_id = p_issue) then 'self'
    when hops > understudy.hops_max() then 'too_many_hops'
    when understudy.is_at_it(p_issue, p_agent) then 'pending'
    else 'enqueued' end;
  if outcome = 'enqueued' then
    select * into task from understudy.enqueue_task(p_task, it, agent, 'assign', p_hops => hops);
  end if;
  return next;
end $$;

create function understudy.is_at_it(p_issue uuid, p_agent uuid) returns boolean language plpgsql stable as $$
begin
  return exists (select from understudy.tasks t where t.issue_id = p_issue and t.agent_id = p_agent
                 and t.status in ('deferred', 'queued', 'dispatched', 'running'));
end $$;

-- An issue that leaves the backlog starts the agent that is assigned to it (R10.1).
create function understudy.set_issue_status(p_workspace uuid, p_issue uuid, p_status text, p_task uuid)
returns table (outcome text, task understudy.tasks) language plpgsql as $$
declare
  it understudy.issues;
  agent understudy.agents;
  was text;
begin
  select * into it from understudy.issues where id = p_issue and workspace_id = p_workspace for no key update;
  if not found then
    outcome := 'issue_not_found'; return next; return;
  end if;
  was := it.status;
  if was = p_status then
    outcome := 'unchanged'; return next; return;
  end if;
  update understudy.issues set status = p_status, updated_at = understudy.now()
    where id = p_issue returning * into it;
  outcome := 'assigned';
  if was = 'backlog' and p_status in ('todo', 'in_progress') and it.assignee_agent_id is not null then
    select * into agent from understudy.agents where id = it.assignee_agent_id and archived_at is null;
    if found and not understudy.is_at_it(it.id, agent.id) then
      select * into task from understudy.enqueue_task(p_task, it, agent, 'assign');
    end if;
    outcome := case when task.id is null then 'pending' else 'enqueued' end;
  end if;
  return next;
end $$;


-- 7.2 Comments that call agents

-- The agents that a text names: `@Name`, in any case, the longest name first, so that `@Nia Two` is
-- not a call for Nia. What stands in Markdown's code speaks to nobody.
create function understudy.mentioned(p_workspace uuid, p_body text) returns setof understudy.agents
language plpgsql stable as $$
declare
  agent understudy.agents;
  rest text := regexp_replace(regexp_replace(p_body, '```.*?(```|$)', ' ', 'g'), '`[^`\n]*`', ' ', 'g');
  pattern text;
begin
  if position('@' in rest) = 0 then
    return;
  end if;
  for agent in select * from understudy.agents where workspace_id = p_workspace and archived_at is null
               order by length(name) desc, id loop
    pattern := '(^|[^[:alnum:]_@.])@' || regexp_replace(agent.name, '([.-])', '\\\1', 'g') || '(?![[:alnum:]_-])';
    if rest ~* pattern then
      rest := regexp_replace(rest, pattern, '\1', 'gi');
      return next agent;
    end if;
  end loop;
end $$;

-- Write a comment and call whom it calls (R10.2): the agents it mentions; or, when a person mentions
-- none, the agent that is assigned. `called` lists {agent_id, agent, outcome, task_id} with an
-- outcome of: enqueued; joined (a task that waits); waiting (until the run at work ends);
-- too_many_hops. Whoever mentions himself calls nobody.
create function understudy.add_comment(
  p_workspace uuid, p_issue uuid, p_id uuid, p_user uuid, p_by uuid, p_body text
) returns table (comment understudy.comments, called jsonb) language plpgsql as $$
declare
  it understudy.issues;
  author understudy.tasks;
begin
  select * into it from understudy.issues where id = p_issue and workspace_id = p_workspace for no key update;
  if not found then
    return;
  end if;
  select * into author from understudy.tasks where id = p_by;
  insert into understudy.comments (id, workspace_id, issue_id, author_user_id, author_agent_id, task_id, body)
    values (p_id, p_workspace, p_issue, p_user, author.agent_id, author.id, p_body)
    returning * into comment;
  called := understudy.route_comment(comment, it);
  return next;
end $$;

-- The issue is locked by the caller: nobody else makes or ends a task of it meanwhile.
create function understudy.route_comment(c understudy.comments, it understudy.issues) returns jsonb
language plpgsql as $$
declare
  agent understudy.agents;
  called jsonb := '[]';
begin
  for agent in select * from understudy.mentioned(c.workspace_id, c.body) loop
    if agent.id is distinct from c.author_agent_id then
      called := called || understudy.call_agent(c, it, agent, 'mention');
    end if;
  end loop;
  if c.author_user_id is not null and called = '[]' and it.status not in ('backlog', 'done', 'cancelled') then
    select * into agent from understudy.agents where id = it.assignee_agent_id and archived_at is null;
    if found then
      called := called || understudy.call_agent(c, it, agent, 'comment');
    end if;
  end if;
  return called;
end $$;

-- The task of this (issue, agent) that can still be told something. Locked: a claim, which does not
-- wait for it, would hand it over untold.
create function understudy.lock_waiting(p_issue uuid, p_agent uuid) returns uuid language plpgsql as $$
begin
  return (select t.id from understudy.tasks t
    where t.issue_id = p_issue and t.agent_id = p_agent and t.status in ('deferred', 'queued')
    order by t.id limit 1 for no key update);
end $$;

create function understudy.call_agent(
  c understudy.comments, it understudy.issues, agent understudy.agents, p_trigger text
) returns jsonb language plpgsql as $$
declare
  hops int := understudy.hops_after(c.task_id);
  answering uuid;
  outcome text;
begin
  if hops > understudy.hops_max() then
    return jsonb_build_object('agent_id', agent.id, 'agent', agent.name, 'outcome', 'too_many_hops', 'task_id', null);
  end if;
  answering := understudy.lock_waiting(it.id, agent.id);
  if answering is not null then
    outcome := 'joined';
  elsif understudy.is_at_it(it.id, agent.id) then
    outcome := 'waiting';   -- What is dispatched has been told already: it would not hear of this.
  else
    outcome := 'enqueued';
    select t.id into answering from understudy.enqueue_task(
      understudy.derived_id(c.id, agent.id::text), it, agent, p_trigger, c.id, hops) t;
  end if;
  insert into understudy.calls (comment_id, agent_id, issue_id, task_id, hops)
    values (c.id, agent.id, it.id, answering, hops);
  return jsonb_build_object('agent_id', agent.id, 'agent', agent.name, 'outcome', outcome, 'task_id', answering);
end $$;

-- At the end of a run: what was said to its agent meanwhile becomes one task, unless one waits that
-- can answer, or another run is at work. Who cancels a run stops what waited for it by then, too.
create function understudy.answer_calls(ended understudy.tasks) returns void language plpgsql as $$
declare
  it understudy.issues;
  agent understudy.agents;
  newest understudy.calls;
  answering uuid;
begin
  if not exists (select from understudy.calls
                 where issue_id = ended.issue_id and agent_id = ended.agent_id and task_id is null) then
    return;
  end if;
  answering := understudy.lock_waiting(ended.issue_id, ended.agent_id);
  if answering is null then
    if understudy.is_at_it(ended.issue_id, ended.agent_id) then
      return;
    end if;
    update understudy.calls set task_id = ended.id
      where issue_id = ended.issue_id and agent_id = ended.agent_id and task_id is null
        and case when ended.cancel_requested_at is not null then created_at < ended.cancel_requested_at
                 else ended.status = 'cancelled' end;
    select * into newest from understudy.calls
      where issue_id = ended.issue_id and agent_id = ended.agent_id and task_id is null
      order by created_at desc, comment_id limit 1;
    if not found then
      return;
    end if;
    select * into it from understudy.issues where id = ended.issue_id;
    select * into agent from understudy.agents where id = ended.agent_id and archived_at is null;
    if found then
      select t.id into answering from understudy.enqueue_task(
        understudy.derived_id(ended.id, 'calls'), it, agent, 'mention', newest.comment_id, newest.hops) t;
    end if;
  end if;
  update understudy.calls set task_id = answering
    where issue_id = ended.issue_id and agent_id = ended.agent_id and task_id is null;
end $$;


-- 7.3 Claims

-- Tell that an agent has come to rest. Called last in a transaction: its lock makes the count exact,
-- and is what claims wait for.
create function understudy.note_agents(p_agents uuid[]) returns void language plpgsql as $$
declare
  agent understudy.agents;
begin
  for agent in select * from understudy.agents where id = any (p_agents) order by id for no key update loop
    insert into understudy.events (workspace_id, kind, payload)
      select agent.workspace_id, 'agent:status', jsonb_build_object('agent_id', agent.id, 'status', 'idle')
      where not exists (select from understudy.tasks f
                        where f.agent_id = agent.id and f.status in ('dispatched', 'running'));
  end loop;
end $$;

-- Up to one task per token for this runtime (R3.1 to R3.4, R3.11). `p_fence` is 'none' for claimants
-- that know no tokens (R3.6). The agents are locked first and in one order: skipping locked tasks
-- would not serialise the count, and two orders would deadlock. It waits for no task's lock: whoever
-- holds one may be waiting for an agent.
create function understudy.claim_tasks(p_runtime uuid, p_tokens uuid[], p_fence text, p_lease interval)
returns setof understudy.tasks language plpgsql as $$
declare
  place understudy.runtimes;
  given_back uuid[];
  claimed understudy.tasks[];
begin
  select * into place from understudy.runtimes where id = p_runtime and retired_at is null;
  -- A look first, that locks nothing: a thousand idle runtimes ask, and to lock is to write (R4.3).
  -- What is committed behind it wakes them.
  if not exists (
      select from understudy.tasks t
      where t.runtime_id = p_runtime and t.status = 'dispatched' and t.claim_expires_at <= understudy.now())
    and not exists (
      select from understudy.agents a cross join lateral (
        select from understudy.tasks t
        where t.agent_id = a.id and t.status = 'queued' and (t.runtime_id = p_runtime or t.runtime_id is null)
        order by t.rank, t.id limit 1) waiting
      where a.workspace_id = place.workspace_id and a.provider = place.provider and a.archived_at is null) then
    return;
  end if;
  perform 1 from understudy.agents
    where workspace_id = place.workspace_id and provider = place.provider and archived_at is null
    order by id for no key update;
  -- A claim proves that the runtime lives: only then do its expired claims go back (R3.8), to
  -- whichever runtimes the agent may use: this one may die, or have no room.
  with expired as materialized (
    select t.id from understudy.tasks t
    where t.runtime_id = p_runtime and t.status = 'dispatched' and t.claim_expires_at <= understudy.now()
    order by t.id for update skip locked
  ), returned as (
    update understudy.tasks t
      set status = 'queued', move = 'requeue', claim_token = null, fence = 'none', claim_expires_at = null,
          dispatched_at = null,
          runtime_id = (select a.runtime_id from understudy.agents a where a.id = t.agent_id)
      from expired where t.id = expired.id returning t.id, t.issue_id, t.agent_id
  ), said_meanwhile as materialized (   -- It is told when it is claimed again (R10.2).
    select l.comment_id, l.agent_id, r.id as answering
    from returned r join understudy.calls l on l.issue_id = r.issue_id and l.agent_id = r.agent_id
    where l.task_id is null for update of l skip locked
  ), joined as (
    update understudy.calls l set task_id = m.answering from said_meanwhile m
      where l.comment_id = m.comment_id and l.agent_id = m.agent_id
  ) select array_agg(agent_id) into given_back from returned;
  if place.problem is null and coalesce(place.quota_resets_at, '-infinity') <= understudy.now() then
    with room as materialized (
      select a.id, a.max_concurrent_tasks - (
          select count(*) from understudy.tasks f
          where f.agent_id = a.id and f.status in ('dispatched', 'running')) as free
      from understudy.agents a
      where a.workspace_id = place.workspace_id and a.provider = place.provider and a.archived_at is null
    ), chosen as materialized (
      select c.id, row_number() over (order by c.rank, c.id) as place_in_line
      from room cross join lateral (
        select t.id, t.rank from understudy.tasks t
        where t.agent_id = room.id and t.status = 'queued'
          and (t.runtime_id = p_runtime or t.runtime_id is null)
          and not exists (
            select from understudy.tasks f
            where f.agent_id = t.agent_id and f.issue_id = t.issue_id and f.status in ('dispatched', 'running'))
        order by t.rank, t.id
        limit greatest(0, least(room.free, cardinality(p_tokens)))
        for update of t skip locked
      ) c
      order by c.rank, c.id
      limit cardinality(p_tokens)
    ), taken as (
      update understudy.tasks t
        set status = 'dispatched', move = 'claim', runtime_id = p_runtime, fence = p_fence,
            claim_token = case when p_fence <> 'none' then p_tokens[chosen.place_in_line] end,
            claim_expires_at = understudy.now() + p_lease, dispatched_at = understudy.now()
        from chosen where t.id = chosen.id
        returning t, chosen.place_in_line
    ) select array_agg(taken.t order by place_in_line) into claimed from taken;
  end if;
  insert into understudy.events (workspace_id, kind, payload)
    select place.workspace_id, 'agent:status', jsonb_build_object('agent_id', c.agent_id, 'status', 'working')
    from (select agent_id, count(*) as taken from unnest(claimed) group by agent_id) c
    where c.taken = (select count(*) from understudy.tasks f
                     where f.agent_id = c.agent_id and f.status in ('dispatched', 'running'));
  if given_back is not null then
    perform understudy.note_agents(given_back);
  end if;
  return query select * from unnest(claimed);
end $$;

-- What a claim left: `left_for` are the runtimes for which the next claim would find something (null: for
-- each of the place), `barred_s` for how long this one gets nothing, whatever there is. `p_claimed` says
-- that it is asked after the claim. All of an agent's tasks that wait are bound to what the agent is.
create function understudy.look_after_claim(
  p_runtime uuid, p_claimed understudy.tasks[], out left_for uuid[], out barred_s float8
) language plpgsql as $$
declare
  place understudy.runtimes;
begin
  select * into place from understudy.runtimes where id = p_runtime;
  if not found then
    left_for := array[null]::uuid[];   -- It could not look.
    return;
  end if;
  left_for := array(
    select distinct a.runtime_id
    from understudy.agents a cross join lateral (
      select from understudy.tasks t
      where t.agent_id = a.id and t.status = 'queued'
        and not exists (
          select from understudy.tasks f
          where f.agent_id = t.agent_id and f.issue_id = t.issue_id and f.status in ('dispatched', 'running'))
      order by t.rank, t.id limit 1) waiting
    where a.workspace_id = place.workspace_id and a.provider = place.provider and a.archived_at is null
      and a.max_concurrent_tasks > (
        select count(*) from understudy.tasks f
        where f.agent_id = a.id and f.status in ('dispatched', 'running')));
  barred_s := case
    when place.problem is not null or place.retired_at is not null then 'infinity'
    else extract(epoch from place.quota_resets_at - understudy.now()) end;
end $$;

-- What the runs of these claims need beside the task (R5.9, R10.2). A function of its own: the
-- statement that claims sees nothing of what was committed while it waited for the agents, be it an
-- issue or a comment that the task was told.
create function understudy.brief_claims(p_claimed understudy.tasks[], p_unsafe text[]) returns table (
  task understudy.tasks, agent understudy.agents, issue understudy.issues, key text, repository text,
  prior_session_id text, prior_work_dir text, told text
) language plpgsql as $$
begin
  return query
  select c, a, i, w.issue_prefix || '-' || i.number, coalesce(i.repository, w.repository),
         prior.session_id, prior.work_dir, called.content
  from unnest(p_claimed) c
  join understudy.agents a on a.id = c.agent_id
  join understudy.workspaces w on w.id = c.workspace_id
  left join understudy.issues i on i.id = c.issue_id
  left join lateral (
    -- What the newest run of this agent on this issue left behind, on the machine that has it.
    select p.work_dir, case when not c.is_fresh
             and coalesce(p.failure_reason, '') <> all (p_unsafe)
             and not exists (select from understudy.refused_sessions r
                             where r.workspace_id = p.workspace_id and r.session_id = p.session_id)
           then p.session_id end as session_id
    from (
      select * from understudy.tasks t
      where t.issue_id = c.issue_id and t.agent_id = c.agent_id
        and t.status in ('completed', 'failed') and t.started_at is not null
      order by t.created_at desc, t.id limit 1
    ) p where p.runtime_id = c.runtime_id
  ) prior on true
  left join lateral (
    select string_agg(coalesce(u.name, au.name, 'somebody') || ': ' || m.body, E'\n\n'
                      order by m.created_at, m.id) as content
    from understudy.calls l join understudy.comments m on m.id = l.comment_id
    left join understudy.users u on u.id = m.author_user_id
    left join understudy.agents au on au.id = m.author_agent_id
    where l.task_id = c.id
  ) called on true
  order by c.rank, c.id;
end $$;

-- What a refused move met: the newest row, and what that means for the one who asked.
create function understudy.refusal(p_workspace uuid, p_task uuid, p_token uuid, p_done text[])
returns table (outcome text, task understudy.tasks) language plpgsql as $$
begin
  select * into task from understudy.tasks where id = p_task and workspace_id = p_workspace;
  outcome := case
    when not found then 'not_found'
    when task.claim_token is distinct from p_token then 'fenced'
    when task.status = any (p_done) then 'replayed'
    else 'fenced' end;
  return next;
end $$;

create function understudy.renew_claim(p_workspace uuid, p_task uuid, p_token uuid, p_extension interval)
returns table (outcome text, task understudy.tasks) language plpgsql as $$
begin
  update understudy.tasks set claim_expires_at = understudy.now() + p_extension
    where id = p_task and workspace_id = p_workspace and status = 'dispatched'
      and claim_token is not distinct from p_token and claim_expires_at > understudy.now()
    returning * into task;
  if found then
    outcome := 'moved'; return next; return;
  end if;
  return query select * from understudy.refusal(p_workspace, p_task, p_token, array['running']);
end $$;

create function understudy.start_task(p_workspace uuid, p_task uuid, p_token uuid)
returns table (outcome text, task understudy.tasks) language plpgsql as $$
begin
  perform 1 from understudy.issues i join understudy.tasks t on t.issue_id = i.id
    where t.id = p_task and t.workspace_id = p_workspace for no key update of i;
  update understudy.tasks
    set status = 'running', move = 'start', claim_expires_at = null, started_at = understudy.now()
    where id = p_task and workspace_id = p_workspace and status = 'dispatched'
      and claim_token is not distinct from p_token and claim_expires_at > understudy.now()
    returning * into task;
  if not found then
    return query select * from understudy.refusal(p_workspace, p_task, p_token, array['running']);
    return;
  end if;
  update understudy.issues set status = 'in_progress', updated_at = understudy.now()
    where id = task.issue_id and status = 'todo';
  outcome := 'moved'; return next;
end $$;


-- 7.4 Ends
--
-- A run ends in one of four ways, and all that must be true with it is true in that transaction (R2.3):
-- the retry, whoever was called meanwhile, the comment, the status of issue and agent.

-- What every end has in common. The agent's status comes last, by its caller.
create function understudy.after_end(ended understudy.tasks) returns void language plpgsql as $$
begin
  if ended.issue_id is null then
    return;
  end if;
  perform understudy.answer_calls(ended);
  -- R5.6: nobody works on it any more.
  update understudy.issues
    set status = case ended.status when 'completed' then 'in_review' else 'todo' end, updated_at = understudy.now()
    where id = ended.issue_id
      and (status = 'in_progress' or (status = 'todo' and ended.move = 'complete_late'))
      and not exists (select from understudy.tasks o where o.issue_id = ended.issue_id
                      and o.status in ('deferred', 'queued', 'dispatched', 'running'));
end $$;

-- Policies by reason (R5.1, R5.2), made from core/failures.py (policy_sql).
create function understudy.failure_policy(p_reason text) returns table
  (is_retryable boolean, attempts_max int, delays_s float8[], doubling boolean, resume boolean)
language plpgsql immutable as $$
begin
  return query select p.is_retryable, p.attempts_max, p.delays_s::float8[], p.doubling, p.resume from (values
    ('timeout', true, null::int, '{0}', false, true),
    ('runtime_offline', true, null::int, '{0}', false, true),
    ('runtime_recovery', true, null::int, '{0}', false, true),
    ('runtime_shutdown', true, null::int, '{0}', false, true),
    ('keeper_lost', true, null::int, '{0}', false, true),
    ('agent_killed', true, null::int, '{0}', false, true),
    ('prepare_failed', true, null::int, '{0}', false, true),
    ('agent_stalled', true, null::int, '{0}', false, false),
    ('provider_network', true, 4, '{0,5,30}', false, true),
    ('provider_overloaded', true, null::int, '{30}', true, true),
    ('quota_exhausted', true, 5, '{3600}', false, true),
    ('poison', false, null::int, '{0}', false, true),
    ('queued_expired', false, null::int, '{0}', false, true),
    ('auth', false, null::int, '{0}', false, true),
    ('model_unavailable', false, null::int, '{0}', false, true),
    ('invalid_request', false, null::int, '{0}', false, false),
    ('context_overflow', false, null::int, '{0}', false, false),
    ('agent_error', false, null::int, '{0}', false, true),
    ('iteration_limit', false, null::int, '{0}', false, false),
    ('no_result', false, null::int, '{0}', false, true),
    ('missing_config', false, null::int, '{0}', false, true),
    ('executable_missing', false, null::int, '{0}', false, true),
    ('cancelled', false, null::int, '{0}', false, true),
    ('superseded', false, null::int, '{0}', false, true),
    ('unknown', false, null::int, '{0}', false, true)
  ) as p (reason, is_retryable, attempts_max, delays_s, doubling, resume)
  where p.reason = p_reason;
end $$;

-- When the next attempt may run, and what it waits for meanwhile; `fire_at` is null where there is none
-- (R5.2 to R5.4, R5.7). `p_retry_after_s` is what the provider asked for, until its quota resets for one.
create function understudy.plan_retry(
  it understudy.tasks, p_reason text, p_retry_after_s float8, p_jitter float8, out fire_at timestamptz, out waits_for text
) language plpgsql as $$
declare
  policy record;
  delay_s float8;
  line_ends_at timestamptz;
begin
  select * into policy from understudy.failure_policy(p_reason);
  if not coalesce(policy.is_retryable, false) or it.max_attempts = 1
      or it.attempt >= coalesce(policy.attempts_max, it.max_attempts)
      or it.issue_id is null   -- A schedule in run-only mode comes again by itself.
      or not exists (select from understudy.agents a where a.id = it.agent_id and a.archived_at is null)
      or exists (select from understudy.tasks t where t.issue_id = it.issue_id and t.agent_id = it.agent_id
                 and t.status in ('queued', 'dispatched') and t.id <> it.id) then
    return;
  end if;
  delay_s := policy.delays_s[least(it.attempt, cardinality(policy.delays_s))]
             * case when policy.doubling then 2 ^ (it.attempt - 1) else 1 end;
  if p_reason in ('provider_overloaded', 'quota_exhausted') then
    delay_s := least(coalesce(p_retry_after_s, delay_s), 8 * 86400);
  end if;
  delay_s := delay_s + p_jitter * least(0.2 * delay_s, 60);
  fire_at := understudy.now() + make_interval(secs => delay_s);
  waits_for := case when p_reason = 'quota_exhausted' then 'quota'
                    when p_reason like 'provider_%' then 'provider' else 'backoff' end;
  -- More than 20 retries a minute in a workspace are a storm: the others stand in line, one for
  -- every 3 s, until it is over.
  select max(d.fire_at) into line_ends_at from understudy.tasks d
    where d.workspace_id = it.workspace_id and d.status = 'deferred' and d.deferred_for = 'storm';
  if line_ends_at is not null or 20 <= (
      select count(*) from (
        select from understudy.tasks r where r.workspace_id = it.workspace_id and r.attempt > 1
          and r.created_at > understudy.now() - interval '1 minute' limit 20) recent) then
    line_ends_at := greatest(line_ends_at, understudy.now()) + interval '3 seconds';
    if line_ends_at > fire_at then
      fire_at := line_ends_at;
      waits_for := 'storm';
    end if;
  end if;
end $$;

-- The one way to fail (R5.5). The caller has locked the issue and, by the move's guard, the row. What
-- was to be cancelled is cancelled, however it ends.
create function understudy.end_failed(
  it understudy.tasks, p_move text, p_reason text, p_error text,
  p_session text default null, p_work_dir text default null,
  p_retry_after_s float8 default null, p_jitter float8 default 0
) returns understudy.tasks language plpgsql as $$
declare
  plan record;
begin
  if it.cancel_requested_at is not null then
    return understudy.end_cancelled(it, case when p_move <> 'fail' then
      'cancelled, unconfirmed: ' || p_error end, p_session, p_work_dir);
  end if;
  select * into plan from understudy.plan_retry(it, p_reason, p_retry_after_s, p_jitter);
  update understudy.tasks
    set status = 'failed', move = p_move, failure_reason = p_reason, error = p_error,
        completed_at = understudy.now(), claim_expires_at = null,
        session_id = coalesce(p_session, session_id), work_dir = coalesce(p_work_dir, work_dir),
        retry_task_id = case when plan.fire_at is not null then understudy.derived_id(id, 'retry') end
    where id = it.id returning * into it;
  if it.retry_task_id is not null then
    perform understudy.bear_retry(it, plan.fire_at, plan.waits_for);
  end if;
  perform understudy.after_end(it);
  return it;
end $$;

-- R5.3, R5.4: the next attempt, with what the failed one had, on whichever runtime its agent may use.
create function understudy.bear_retry(failed understudy.tasks, p_fire_at timestamptz, p_waits_for text)
returns void language plpgsql as $$
declare
  policy record;
  is_due boolean := p_fire_at <= understudy.now();
begin
  select * into policy from understudy.failure_policy(failed.failure_reason);
  insert into understudy.tasks
    (id, workspace_id, issue_id, agent_id, runtime_id, provider, status, move, trigger, trigger_comment_id,
     priority, rank, attempt, max_attempts, parent_task_id, is_fresh, hops, host_crashes, context,
     fire_at, deferred_for, session_id, work_dir)
  select
    failed.retry_task_id, failed.workspace_id, failed.issue_id, failed.agent_id, a.runtime_id, a.provider,
    case when is_due then 'queued' else 'deferred' end, case when is_due then 'enqueue' else 'defer' end,
    failed.trigger, failed.trigger_comment_id, failed.priority, failed.rank, failed.attempt + 1,
    greatest(failed.max_attempts, failed.attempt + 1), failed.id,
    not policy.resume or (failed.is_fresh and failed.session_id is null), failed.hops,
    failed.host_crashes + (failed.move = 'orphan' and failed.started_at is not null)::int, failed.context,
    case when not is_due then p_fire_at end, case when not is_due then p_waits_for end,
    case when policy.resume then failed.session_id end, case when policy.resume then failed.work_dir end
  from understudy.agents a where a.id = failed.agent_id;
  update understudy.calls set task_id = failed.retry_task_id where task_id = failed.id;
end $$;

create function understudy.end_cancelled(
  it understudy.tasks, p_error text, p_session text default null, p_work_dir text default null,
  p_reason text default 'cancelled'
) returns understudy.tasks language plpgsql as $$
begin
  update understudy.tasks
    set status = 'cancelled', move = 'cancel', failure_reason = p_reason, error = p_error,
        completed_at = understudy.now(), claim_expires_at = null,
        session_id = coalesce(p_session, session_id), work_dir = coalesce(p_work_dir, work_dir)
    where id = it.id returning * into it;
  perform understudy.after_end(it);
  return it;
end $$;

create function understudy.complete_task(
  p_workspace uuid, p_task uuid, p_token uuid, p_result jsonb, p_session text, p_work_dir text, p_comment uuid
) returns table (outcome text, task understudy.tasks) language plpgsql as $$
begin
  perform 1 from understudy.issues i join understudy.tasks t on t.issue_id = i.id
    where t.id = p_task and t.workspace_id = p_workspace for no key update of i;
  update understudy.tasks
    set status = 'completed', move = 'complete', result = p_result, completed_at = understudy.now(),
        session_id = coalesce(p_session, session_id), work_dir = coalesce(p_work_dir, work_dir)
    where id = p_task and workspace_id = p_workspace and status = 'running'
      and claim_token is not distinct from p_token
    returning * into task;
  if not found then
    return query select * from understudy.complete_late(
      p_workspace, p_task, p_token, p_result, p_session, p_work_dir, p_comment);
    return;
  end if;
  perform understudy.publish_result(task, p_comment);
  perform understudy.after_end(task);
  perform understudy.note_agents(array[task.agent_id]);
  outcome := 'moved'; return next;
end $$;

-- R10.3: an agent that said nothing says its final text.
create function understudy.publish_result(done understudy.tasks, p_comment uuid) returns void language plpgsql as $$
declare
  said understudy.comments;
  it understudy.issues;
begin
  insert into understudy.comments (id, workspace_id, issue_id, author_agent_id, task_id, body)
    select p_comment, done.workspace_id, done.issue_id, done.agent_id, done.id, done.result ->> 'output'
    where done.issue_id is not null and coalesce(done.result ->> 'output', '') <> ''
      and not exists (select from understudy.comments c where c.task_id = done.id)
    returning * into said;
  if found then
    select * into it from understudy.issues where id = done.issue_id;
    perform understudy.route_comment(said, it);
  end if;
end $$;

-- R6.5: by the server, of its own accord; not by its own report, which would be replayed.
create function understudy.was_given_up(it understudy.tasks) returns boolean language sql immutable as $$
  select it.status = 'failed' and it.result is null and it.started_at is not null
    and it.failure_reason in ('timeout', 'runtime_offline', 'runtime_recovery')
    and it.move in ('time_out', 'lose', 'orphan')
$$;

-- R6.5. A result that comes after the server gave the task up counts as long as no successor has
-- started; then it ends them. Otherwise it is kept on the old row for the reader (outcome `kept`).
create function understudy.complete_late(
  p_workspace uuid, p_task uuid, p_token uuid, p_result jsonb, p_session text, p_work_dir text, p_comment uuid
) returns table (outcome text, task understudy.tasks) language plpgsql as $$
declare
  heir understudy.tasks;
  heirs understudy.tasks[];
  agents uuid[];
begin
  select * into task from understudy.tasks t
    where id = p_task and workspace_id = p_workspace and understudy.was_given_up(t)
      and claim_token is not distinct from p_token
    for no key update;
  if not found then
    return query select * from understudy.refusal(
      p_workspace, p_task, p_token, array['completed', 'failed', 'cancelled']);
    return;
  end if;
  with recursive line as (
    select t.* from understudy.tasks t where t.parent_task_id = p_task and t.attempt > 1
    union all
    select t.* from understudy.tasks t join line on t.parent_task_id = line.id where t.attempt > 1
  ) select array_agg(h order by h.attempt) into heirs from understudy.tasks h where h.id in (select id from line);
  if exists (select from unnest(heirs) where started_at is not null) then
    update understudy.tasks set result = p_result where id = p_task returning * into task;
    outcome := 'kept'; return next; return;
  end if;
  foreach heir in array coalesce(heirs, '{}') loop
    if heir.status in ('deferred', 'queued', 'dispatched') then
      update understudy.tasks
        set status = 'cancelled', move = 'cancel', failure_reason = 'superseded', completed_at = understudy.now(),
            error = 'the attempt before it had succeeded after all', claim_expires_at = null
        where id = heir.id;
      agents := agents || heir.agent_id;
    end if;
    -- What was said before this one was claimed it has heard; the rest is still to be answered.
    update understudy.calls set task_id = case when created_at < task.dispatched_at then p_task end
      where task_id = heir.id;
  end loop;
  update understudy.tasks
    set status = 'completed', move = 'complete_late', result = p_result, completed_at = understudy.now(),
        failure_reason = null, error = null,
        session_id = coalesce(p_session, session_id), work_dir = coalesce(p_work_dir, work_dir)
    where id = p_task returning * into task;
  perform understudy.publish_result(task, p_comment);
  perform understudy.after_end(task);
  perform understudy.note_agents(agents);
  outcome := 'moved'; return next;
end $$;

create function understudy.fail_task(
  p_workspace uuid, p_task uuid, p_token uuid, p_reason text, p_error text, p_session text, p_work_dir text,
  p_retry_after_s float8, p_refused_session text, p_jitter float8
) returns table (outcome text, task understudy.tasks) language plpgsql as $$
begin
  perform 1 from understudy.issues i join understudy.tasks t on t.issue_id = i.id
    where t.id = p_task and t.workspace_id = p_workspace for no key update of i;
  select * into task from understudy.tasks
    where id = p_task and workspace_id = p_workspace and status in ('dispatched', 'running')
      and claim_token is not distinct from p_token
    for no key update;
  if not found then
    return query select * from understudy.refusal(
      p_workspace, p_task, p_token, array['completed', 'failed', 'cancelled']);
    return;
  end if;
  perform understudy.refuse_session(task.id, p_refused_session);
  task := understudy.end_failed(
    task, 'fail', p_reason, p_error, nullif(p_session, p_refused_session), p_work_dir, p_retry_after_s, p_jitter);
  if task.failure_reason = 'quota_exhausted' then
    -- The others of this runtime would spend a run each to find out the same (R5.2).
    update understudy.runtimes
      set quota_resets_at = greatest(quota_resets_at, understudy.now()
        + make_interval(secs => least(coalesce(p_retry_after_s, 3600), 8 * 86400)))
      where id = task.runtime_id;
  end if;
  perform understudy.note_agents(array[task.agent_id]);
  outcome := 'moved'; return next;
end $$;

-- R5.10: a session that its CLI refused is dead for ever, wherever its id is written.
create function understudy.refuse_session(p_task uuid, p_session text) returns void language plpgsql as $$
begin
  if p_session is null then
    return;
  end if;
  insert into understudy.refused_sessions (workspace_id, session_id)
    select workspace_id, p_session from understudy.tasks where id = p_task
    on conflict do nothing;
  update understudy.tasks set session_id = null where id = p_task and session_id = p_session;
end $$;


-- 7.5 Cancel, stop, run again

-- R7.1, by a person. Nothing runs before `start`, so what has not started is cancelled at once
-- (`moved`); what runs is to be stopped by its machine first (`requested`, or `replayed`). What has
-- ended otherwise stays as it is (`ended`).
create function understudy.cancel_task(p_workspace uuid, p_task uuid, p_by uuid)
returns table (outcome text, task understudy.tasks) language plpgsql as $$
declare
  done record;
begin
  perform 1 from understudy.issues i join understudy.tasks t on t.issue_id = i.id
    where t.id = p_task and t.workspace_id = p_workspace for no key update of i;
  select * into task from understudy.tasks where id = p_task and workspace_id = p_workspace for no key update;
  if not found then
    outcome := 'not_found'; return next; return;
  end if;
  done := understudy.cancel_row(task, p_by);
  outcome := done.outcome; task := done.task;
  if outcome = 'moved' and task.dispatched_at is not null then
    perform understudy.note_agents(array[task.agent_id]);
  end if;
  return next;
end $$;

create function understudy.cancel_row(it understudy.tasks, p_by uuid, out outcome text, out task understudy.tasks)
language plpgsql as $$
begin
  task := it;
  if it.status in ('deferred', 'queued', 'dispatched') then
    update understudy.tasks set cancel_requested_by = p_by where id = it.id;
    task := understudy.end_cancelled(it, null);
    outcome := 'moved';
  elsif it.status = 'running' and it.cancel_requested_at is null then
    update understudy.tasks set cancel_requested_at = understudy.now(), cancel_requested_by = p_by
      where id = it.id returning * into task;
    outcome := 'requested';
  elsif it.status in ('running', 'cancelled') then
    outcome := 'replayed';
  else
    outcome := 'ended';
  end if;
end $$;

-- All that is active on an issue, whoever works on it; and the issue itself.
create function understudy.cancel_issue(p_workspace uuid, p_issue uuid, p_by uuid)
returns table (outcome text, task understudy.tasks) language plpgsql as $$
declare
  it understudy.tasks;
  done record;
  agents uuid[];
begin
  perform 1 from understudy.issues where id = p_issue and workspace_id = p_workspace for no key update;
  update understudy.issues set status = 'cancelled', updated_at = understudy.now()
    where id = p_issue and workspace_id = p_workspace and status <> 'cancelled';
  for it in select * from understudy.tasks t where t.issue_id = p_issue and t.workspace_id = p_workspace
            and t.status in ('deferred', 'queued', 'dispatched', 'running') order by t.id for no key update loop
    done := understudy.cancel_row(it, p_by);
    outcome := done.outcome; task := done.task;
    agents := agents || case when it.status = 'dispatched' then it.agent_id end;
    return next;
  end loop;
  perform understudy.note_agents(agents);
end $$;

-- The second phase, by the daemon: the whole process tree is gone.
create function understudy.confirm_stop(p_workspace uuid, p_task uuid, p_token uuid, p_left text[] default '{}')
returns table (outcome text, task understudy.tasks) language plpgsql as $$
begin
  perform 1 from understudy.issues i join understudy.tasks t on t.issue_id = i.id
    where t.id = p_task and t.workspace_id = p_workspace for no key update of i;
  select * into task from understudy.tasks
    where id = p_task and workspace_id = p_workspace and status = 'running' and cancel_requested_at is not null
      and claim_token is not distinct from p_token
    for no key update;
  if not found then
    return query select * from understudy.refusal(
      p_workspace, p_task, p_token, array['completed', 'failed', 'cancelled']);
    return;
  end if;
  task := understudy.end_cancelled(
    task, 'not even SIGKILL has ended: ' || nullif(array_to_string(p_left, ', '), ''));
  perform understudy.note_agents(array[task.agent_id]);
  outcome := 'moved'; return next;
end $$;

-- R7.6, by a person: a new task of the issue's agent, or of the one whose task `p_again` names. What
-- that agent has on the issue is cancelled first, unless `p_after`: then the new one runs behind it.
-- Who runs something again knows that there is quota again. First row: the new task (`enqueued`, or
-- `pending` if one waits already), or issue_not_found, task_not_found, agent_not_found; then
-- what was cancelled, as in cancel_row.
create function understudy.rerun_issue(
  p_workspace uuid, p_issue uuid, p_id uuid, p_by uuid, p_again uuid, p_is_fresh boolean, p_after boolean
) returns table (outcome text, task understudy.tasks) language plpgsql as $$
declare
  it understudy.issues;
  agent understudy.agents;
  parent uuid;
  active understudy.tasks;
  done record;
  cancelled understudy.tasks[];
  outcomes text[];
begin
  select * into it from understudy.issues where id = p_issue and workspace_id = p_workspace for no key update;
  if not found then
    outcome := 'issue_not_found'; return next; return;
  end if;
  if p_again is not null and not exists (
      select from understudy.tasks t where t.id = p_again and t.issue_id = p_issue) then
    outcome := 'task_not_found'; return next; return;
  end if;
  select * into agent from understudy.agents a where a.archived_at is null and a.id = coalesce(
    (select t.agent_id from understudy.tasks t where t.id = p_again), it.assignee_agent_id);
  if not found then
    outcome := 'agent_not_found'; return next; return;
  end if;
  select coalesce(p_again, t.id) into parent from understudy.tasks t
    where t.issue_id = p_issue and t.agent_id = agent.id order by t.created_at desc, t.id limit 1;
  for active in select * from understudy.tasks t where t.issue_id = p_issue and t.agent_id = agent.id
                and t.status in ('deferred', 'queued', 'dispatched', 'running') and not p_after
                order by t.id for no key update loop
    done := understudy.cancel_row(active, p_by);
    outcomes := outcomes || done.outcome;
    cancelled := cancelled || done.task;
  end loop;
  outcome := 'enqueued';
  select * into task from understudy.enqueue_task(
    p_id, it, agent, 'rerun', p_parent => parent, p_is_fresh => p_is_fresh);
  if task.id is null then
    outcome := 'pending';
    select * into task from understudy.tasks t
      where t.issue_id = p_issue and t.agent_id = agent.id and t.status in ('queued', 'dispatched');
  else
    -- It answers whoever called the runs that it replaces.
    update understudy.calls c set task_id = task.id
      where c.task_id in (select id from unnest(cancelled) where status = 'cancelled');
  end if;
  return next;
  return query select outcomes[i], cancelled[i] from generate_subscripts(outcomes, 1) as i;
  with spent as materialized (
    select r.id from understudy.runtimes r
    where r.workspace_id = p_workspace and r.provider = agent.provider and r.quota_resets_at is not null
      and (agent.runtime_id is null or r.id = agent.runtime_id)
    order by r.id for no key update
  ) update understudy.runtimes r set quota_resets_at = null from spent where r.id = spent.id;
  if exists (select from unnest(cancelled) where status = 'cancelled' and dispatched_at is not null) then
    perform understudy.note_agents(array[agent.id]);
  end if;
end $$;


-- 7.6 Recovery and sweeps
--
-- Each takes its rows in the order of their issues, as they lock issues, and the agents last. A sweep
-- takes a bounded number, and does nothing while another node is at the same one.

create function understudy.leads(p_sweep text) returns boolean language plpgsql as $$
begin
  return pg_try_advisory_xact_lock(hashtextextended('understudy.sweep.' || p_sweep, 0));
end $$;

-- The row of an in-flight task, locked behind its issue, if it is still as `seen`.
create function understudy.lock_seen(seen understudy.tasks) returns understudy.tasks language plpgsql as $$
declare
  it understudy.tasks;
begin
  perform 1 from understudy.issues where id = seen.issue_id for no key update;
  select * into it from understudy.tasks t
    where t.id = seen.id and t.status = seen.status and t.claim_token is not distinct from seen.claim_token
    for no key update;
  return it;
end $$;

-- R6.1, R6.2: what an earlier process of this daemon left in flight: all that the new one does not
-- name. `p_since` spares what was dispatched a moment ago: its push may be under way. What was dispatched
-- after the registration, at `p_at`, its inventory could not know, however late this is carried out.
create function understudy.recover_runtime(
  p_workspace uuid, p_runtime uuid, p_kept uuid[], p_since interval, p_at timestamptz, p_jitter float8
) returns setof understudy.tasks language plpgsql as $$
declare
  it understudy.tasks;
  agents uuid[];
begin
  for it in select * from understudy.tasks t
            where t.runtime_id = p_runtime and t.status in ('dispatched', 'running') and t.workspace_id = p_workspace
              and t.id <> all (p_kept) and t.dispatched_at <= coalesce(p_at, understudy.now()) - p_since
            order by t.issue_id, t.id loop
    it := understudy.lock_seen(it);
    continue when it.id is null;
    it := understudy.end_failed(
      it, 'orphan',
      -- R6.10: what brings its host down twice is not tried on a third one.
      case when it.started_at is not null and it.host_crashes > 0 then 'poison' else 'runtime_recovery' end,
      'its daemon came back without it', p_jitter => p_jitter);
    agents := agents || it.agent_id;
    return next it;
  end loop;
  perform understudy.note_agents(agents);
end $$;

-- R4.2: in flight on a runtime that is offline past its grace. The short grace holds where another
-- runtime can take over: one that was there when this one was last heard (R4.11: only then has its
-- daemon been told to stop in time), for so long that this one's node knew of the other's by then.
create function understudy.may_be_taken_over(p_task understudy.tasks, p_from understudy.runtimes)
returns boolean language plpgsql stable as $$
begin
  return exists (
    select from understudy.runtimes o join understudy.agents a on a.id = p_task.agent_id and a.runtime_id is null
    where o.workspace_id = p_from.workspace_id and o.provider = p_from.provider and o.status = 'online'
      and o.id <> p_from.id and o.online_since <= p_from.last_seen_at - interval '15 seconds');
end $$;

create function understudy.lose_tasks(p_takeover interval, p_alone interval, p_max int, p_jitter float8)
returns setof understudy.tasks language plpgsql as $$
declare
  it understudy.tasks;
  place understudy.runtimes;
  agents uuid[];
begin
  if not understudy.leads('lose') then
    return;
  end if;
  for it in select t.* from understudy.runtimes r
            join understudy.tasks t on t.runtime_id = r.id and t.status in ('dispatched', 'running')
            where r.status = 'offline' and r.retired_at is null and r.node_id is null
              and r.offline_since <= understudy.now() - least(p_takeover, p_alone)
              and (r.offline_since <= understudy.now() - p_alone
                   or understudy.may_be_taken_over(t, r))
            order by t.issue_id, t.id limit p_max loop
    it := understudy.lock_seen(it);
    continue when it.id is null;
    select * into place from understudy.runtimes where id = it.runtime_id and status = 'offline' and node_id is null;
    continue when not found;
    it := understudy.end_failed(
      it, 'lose', 'runtime_offline',
      format('%s has been offline since %s UTC', place.name, to_char(place.offline_since at time zone 'UTC', 'HH24:MI')),
      p_jitter => p_jitter);
    agents := agents || it.agent_id;
    return next it;
  end loop;
  perform understudy.note_agents(agents);
end $$;

-- R4.10: wall clocks, for owners that no longer prove to live; `p_silent` is how long a runtime must
-- have been offline, so that its daemon has stopped what may be taken over (R4.11). And cancellations that no machine
-- confirmed in time.
create function understudy.time_out_tasks(
  p_dispatched interval, p_running interval, p_silent interval, p_unconfirmed interval, p_max int, p_jitter float8
) returns setof understudy.tasks language plpgsql as $$
declare
  it understudy.tasks;
  agents uuid[];
begin
  if not understudy.leads('time_out') then
    return;
  end if;
  for it in select t.* from understudy.tasks t join understudy.runtimes r on r.id = t.runtime_id
            where t.status in ('dispatched', 'running') and (
              (t.status = 'dispatched' and t.dispatched_at <= understudy.now() - p_dispatched
                and t.claim_expires_at <= understudy.now())
              or (t.status = 'running' and t.started_at <= understudy.now() - p_running
                and r.status = 'offline' and r.node_id is null and r.offline_since <= understudy.now() - p_silent)
              or t.cancel_requested_at <= understudy.now() - p_unconfirmed)
            order by t.issue_id, t.id limit p_max loop
    it := understudy.lock_seen(it);
    continue when it.id is null;
    it := understudy.end_failed(
      it, 'time_out', 'timeout',
      case when it.cancel_requested_at is not null then 'its machine did not say that the process is gone'
           when it.status = 'dispatched' then 'claimed, never started, no longer renewed'
           else 'running for too long on a machine that is silent' end,
      p_jitter => p_jitter);
    agents := agents || it.agent_id;
    return next it;
  end loop;
  perform understudy.note_agents(agents);
end $$;

create function understudy.expire_tasks(p_queued interval, p_max int)
returns setof understudy.tasks language plpgsql as $$
declare
  it understudy.tasks;
begin
  if not understudy.leads('expire') then
    return;
  end if;
  for it in select * from (
              select * from understudy.tasks t
              where t.status = 'queued' and t.queued_at <= understudy.now() - p_queued
              order by t.queued_at limit p_max) late
            order by late.issue_id, late.id loop
    it := understudy.lock_seen(it);
    continue when it.id is null;
    return next understudy.end_failed(
      it, 'expire', 'queued_expired', format('no machine took it within %s h', (extract(epoch from p_queued) / 3600)::float8));
  end loop;
end $$;

-- Deferred tasks that are due, unless one of that (issue, agent) is pending: then they wait for it.
create function understudy.promote_tasks(p_max int) returns setof understudy.tasks language plpgsql as $$
declare
  it understudy.tasks;
begin
  if not understudy.leads('promote') then
    return;
  end if;
  for it in select * from (
              select * from understudy.tasks t
              where t.status = 'deferred' and t.fire_at <= understudy.now()
                and not exists (select from understudy.tasks o where o.issue_id = t.issue_id
                                and o.agent_id = t.agent_id and o.status in ('queued', 'dispatched'))
              order by t.fire_at limit p_max) due
            order by due.issue_id, due.id loop
    perform 1 from understudy.issues where id = it.issue_id for no key update;
    update understudy.tasks t set status = 'queued', move = 'promote'
      where t.id = it.id and t.status = 'deferred' and t.fire_at <= understudy.now()
        and not exists (select from understudy.tasks o where o.issue_id = t.issue_id
                        and o.agent_id = t.agent_id and o.status in ('queued', 'dispatched'))
      returning * into it;
    if found then
      return next it;
    end if;
  end loop;
end $$;

-- The runtimes of nodes that are gone: offline, unless another node has heard them by now (R4.4). Only
-- a node judges that has been there all that time itself.
create function understudy.judge_runtimes(p_node uuid, p_grace interval, p_max int)
returns setof understudy.runtimes language plpgsql as $$
begin
  if not understudy.leads('offline') or not exists (
      select from understudy.nodes me where me.id = p_node and me.lease_expires_at > understudy.now()
        and me.lease_since <= understudy.now() - p_grace) then
    return;
  end if;
  return query
  with left_alone as materialized (
    -- Whom a node no longer hears it takes off within the grace; so whom it left it had heard by then,
    -- if it had the database all the while.
    select r.id, (select n.lease_expires_at - 2 * p_grace from understudy.nodes n where n.id = r.node_id
                  and n.lease_since <= n.lease_expires_at - 2 * p_grace) as heard_by
    from understudy.runtimes r
    where (r.status = 'online' or r.node_id is not null) and not exists (
      select from understudy.nodes n where n.id = r.node_id and n.lease_expires_at > understudy.now() - p_grace)
      -- A node that has the database again may hear them before it has its lease again.
      and r.last_seen_at <= understudy.now() - p_grace
    order by r.id limit p_max for no key update skip locked
  ) update understudy.runtimes r
      set status = 'offline', offline_since = understudy.now(), online_since = null, node_id = null,
          last_seen_at = greatest(r.last_seen_at, left_alone.heard_by)
      from left_alone where r.id = left_alone.id returning r.*;
  delete from understudy.nodes n where n.lease_expires_at < understudy.now() - interval '1 day';
end $$;

-- R4.9: long gone, nobody bound to it, nothing left to do on it.
create function understudy.retire_runtimes(p_age interval, p_max int)
returns setof understudy.runtimes language plpgsql as $$
begin
  if not understudy.leads('retire') then
    return;
  end if;
  return query
  with forgotten as materialized (
    select r.id from understudy.runtimes r
    where r.status = 'offline' and r.node_id is null and r.retired_at is null
      and r.offline_since <= understudy.now() - p_age
      and not exists (select from understudy.agents a where a.runtime_id = r.id and a.archived_at is null)
      and not exists (select from understudy.tasks t where t.runtime_id = r.id
                      and t.status in ('deferred', 'queued', 'dispatched', 'running'))
    order by r.offline_since limit p_max for no key update skip locked
  ) update understudy.runtimes r set retired_at = understudy.now()
      from forgotten where r.id = forgotten.id returning r.*;
end $$;

-- The oldest events, and what was said in the runs whose end is among them; how many rows went. What a
-- run said may be much: then its events wait for another turn.
create function understudy.prune_history(p_age interval, p_max int) returns int language plpgsql as $$
declare
  old bigint[];
  ended uuid[];
  messages int;
begin
  if not understudy.leads('prune') then
    return 0;
  end if;
  select array_agg(e.id), array_agg(e.task_id) filter (
      where e.kind in ('task:completed', 'task:failed', 'task:cancelled'))
    into old, ended
    from (select * from understudy.events order by id limit p_max) e
    where e.created_at < understudy.now() - p_age;
  delete from understudy.task_messages where (task_id, seq) in (
    select m.task_id, m.seq from understudy.task_messages m where m.task_id = any (ended)
    order by m.task_id, m.seq limit 10 * p_max);
  get diagnostics messages = row_count;
  if messages < 10 * p_max then
    delete from understudy.events e where e.id = any (old);
  end if;
  return messages + coalesce(cardinality(old), 0);
end $$;


-- 7.7 What a run tells
--
-- Of a claim that fences all its reports (`full`) each must name the token; of one whose daemon
-- has no field for it (`lease`) a report without one passes (R3.13, spec section 12).

create function understudy.may_tell(it understudy.tasks, p_token uuid) returns boolean
language sql immutable as $$
  select it.claim_token is not distinct from p_token or (p_token is null and it.fence = 'lease')
$$;

-- What the server gave up may still tell the reader what it does: its result may count, too (R6.5).
create function understudy.is_heard(it understudy.tasks) returns boolean language sql immutable as $$
  select it.status in ('dispatched', 'running') or understudy.was_given_up(it)
$$;

-- R5.8: stored the moment the agent reveals them. That a session is dead is noted whatever has become
-- of the task: the next one is not to be offered it (R5.10).
create function understudy.pin_session(
  p_workspace uuid, p_task uuid, p_token uuid, p_session text, p_work_dir text, p_refused_session text
) returns table (outcome text, task understudy.tasks) language plpgsql as $$
begin
  select * into task from understudy.tasks t
    where id = p_task and workspace_id = p_workspace and understudy.may_tell(t, p_token)
    for no key update;
  if found then
    perform understudy.refuse_session(task.id, p_refused_session);
  end if;
  update understudy.tasks
    set session_id = coalesce(nullif(p_session, p_refused_session), session_id),
        work_dir = coalesce(p_work_dir, work_dir)
    where id = task.id and understudy.is_heard(task)
    returning * into task;
  if found then
    outcome := 'moved'; return next; return;
  end if;
  return query select * from understudy.refusal(p_workspace, p_task, p_token, '{}');
end $$;

create function understudy.set_progress(p_workspace uuid, p_task uuid, p_token uuid, p_progress jsonb)
returns table (outcome text, task understudy.tasks) language plpgsql as $$
begin
  update understudy.tasks t set progress = p_progress
    where id = p_task and workspace_id = p_workspace and status = 'running'
      and understudy.may_tell(t, p_token)
    returning * into task;
  if found then
    outcome := 'moved'; return next; return;
  end if;
  return query select * from understudy.refusal(p_workspace, p_task, p_token, '{}');
end $$;

-- R6.9: resending a batch changes nothing. The row lock keeps a batch from slipping in after the end.
create function understudy.append_messages(p_workspace uuid, p_task uuid, p_token uuid, p_messages jsonb)
returns table (outcome text, task understudy.tasks) language plpgsql as $$
begin
  select * into task from understudy.tasks t
    where id = p_task and workspace_id = p_workspace and understudy.is_heard(t)
      and understudy.may_tell(t, p_token)
    for share;
  if not found then
    return query select * from understudy.refusal(p_workspace, p_task, p_token, '{}');
    return;
  end if;
  insert into understudy.task_messages (task_id, seq, type, tool, content, input, output)
    select p_task, m.seq, m.type, m.tool, m.content, m.input, m.output
    from jsonb_to_recordset(p_messages) as
      m (seq int, type text, tool text, content text, input jsonb, output text)
    on conflict (task_id, seq) do nothing;
  outcome := 'moved'; return next;
end $$;

-- R6.7: also of a run that has ended or was cancelled; its tokens were spent.
create function understudy.report_usage(p_workspace uuid, p_task uuid, p_token uuid, p_usage jsonb)
returns table (outcome text, task understudy.tasks) language plpgsql as $$
begin
  select * into task from understudy.tasks t
    where id = p_task and workspace_id = p_workspace and status not in ('deferred', 'queued')
      and understudy.may_tell(t, p_token)
    for share;
  if not found then
    return query select * from understudy.refusal(p_workspace, p_task, p_token, '{}');
    return;
  end if;
  -- Of two rows for one model the last one counts: one statement cannot update a row twice.
  insert into understudy.usage
    select distinct on (u.provider, u.model)
      p_task, u.provider, u.model, u.input_tokens, u.output_tokens, u.cache_read_tokens, u.cache_write_tokens
    from rows from (jsonb_to_recordset(p_usage) as
      (provider text, model text, input_tokens bigint, output_tokens bigint,
       cache_read_tokens bigint, cache_write_tokens bigint)) with ordinality as
      u (provider, model, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, place)
    order by u.provider, u.model, u.place desc
    on conflict (task_id, provider, model) do update set
      input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
      cache_read_tokens = excluded.cache_read_tokens, cache_write_tokens = excluded.cache_write_tokens;
  outcome := 'moved'; return next;
end $$;


-- 8. Which files have been applied -----------------------------------------------------------------

create table understudy.migrations (
  version    int primary key,
  name       text not null,
  applied_at timestamptz not null default understudy.now()
);
