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
  provider      text not null,
  name          text not null,
  device_name   text not null default '',
  device_info   text not null default '',
  status        text not null check (status in ('online', 'offline')),
  problem       text,                    -- why the CLI cannot run, with the repair (R9.4)
  metadata      jsonb not null default '{}',
  last_seen_at  timestamptz not null,
  offline_since timestamptz,
  created_at    timestamptz not null default understudy.now(),
  unique (workspace_id, daemon_id, provider),   -- the same runtime is updated, never doubled
  constraint offline_since_iff_offline check ((status = 'offline') = (offline_since is not null))
);

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
create index issues_by_change on understudy.issues (workspace_id, updated_at desc);

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
                      ('assign', 'comment', 'mention', 'rerun', 'schedule', 'retry')),
  trigger_comment_id  uuid,
  priority            smallint not null default 0 check (priority between 0 and 4),
  attempt             int not null default 1 check (attempt >= 1),
  max_attempts        int not null default 2 check (max_attempts >= 1),
  parent_task_id      uuid references understudy.tasks on delete set null,
  context             jsonb not null default '{}',
  fire_at             timestamptz,         -- deferred until then
  claim_token         uuid,                -- the fence: new at every claim, kept to the end (R3.4, R6.6)
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
  constraint fire_at_iff_deferred check (status <> 'deferred' or fire_at is not null),
  constraint lease_only_while_dispatched check (status = 'dispatched' or claim_expires_at is null),
  constraint dispatched_has_a_lease check (status <> 'dispatched' or claim_expires_at is not null),
  constraint queued_has_no_token check (status not in ('deferred', 'queued') or claim_token is null),
  constraint in_flight_has_a_runtime check (status not in ('dispatched', 'running') or runtime_id is not null),
  constraint end_iff_terminal check ((status in ('completed', 'failed', 'cancelled')) = (completed_at is not null)),
  constraint reason_iff_failed check ((status = 'failed') = (failure_reason is not null))
) with (fillfactor = 85);

-- R2.5: at most one pending row per (issue, agent). Also serves: does one wait already?
create unique index tasks_one_pending on understudy.tasks (issue_id, agent_id)
  where status in ('queued', 'dispatched');

-- Serves: claim, an agent's queued tasks in order.
create index tasks_claimable on understudy.tasks (agent_id, priority desc, created_at, id)
  where status = 'queued';

-- Serves: claim, how many tasks an agent runs, and whether on this issue (R3.3).
create index tasks_in_flight_of_agent on understudy.tasks (agent_id, issue_id)
  where status in ('dispatched', 'running');

-- Serves: preflight requeue, recovery and the sweeps: what a runtime holds.
create index tasks_in_flight_of_runtime on understudy.tasks (runtime_id, status)
  where status in ('dispatched', 'running');

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


-- 4. Keys ------------------------------------------------------------------------------------------

-- Only the SHA-256 of a token is kept. `login` is the one-time link, `session` the browser's cookie,
-- `personal` a person's key, `daemon` a machine's, `task` an agent's: it dies with its task (R9.5).
create table understudy.tokens (
  id           uuid primary key,
  kind         text not null check (kind in ('login', 'session', 'personal', 'daemon', 'task')),
  hash         bytea not null unique,
  name         text not null default '',
  user_id      uuid references understudy.users on delete cascade,
  workspace_id uuid references understudy.workspaces on delete cascade,
  task_id      uuid references understudy.tasks on delete cascade,
  created_at   timestamptz not null default understudy.now(),
  expires_at   timestamptz,
  revoked_at   timestamptz,
  constraint owner_by_kind check (case kind
    when 'daemon' then workspace_id is not null
    when 'task'   then task_id is not null and workspace_id is not null
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

-- Server nodes that share this database, each with a lease of its own (R4.3). Nobody writes it yet.
create table understudy.nodes (
  id               uuid primary key,
  address          text not null,
  started_at       timestamptz not null default understudy.now(),
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
      'runtime_id', new.runtime_id, 'status', new.status, 'move', new.move,
      'attempt', new.attempt, 'failure_reason', new.failure_reason));
  return null;
end $$;

create trigger task_born_event after insert on understudy.tasks
  for each row execute function understudy.record_task();
create trigger task_moved_event after update on understudy.tasks
  for each row when (old.status is distinct from new.status)
  execute function understudy.record_task();

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
--
-- A null token acts only on a row without one (R3.6): `is not distinct from` says so.
--
-- Locks are taken in one order: the issue, the agents by id, the tasks. So an assignment that waits
-- for the pending row of a task that is being started cannot hold what the start waits for; and of
-- two runs that end together, the second sees the first ended when it asks whether others go on.

create function understudy.enqueue_task(
  p_id uuid, p_issue understudy.issues, p_agent understudy.agents, p_trigger text
) returns setof understudy.tasks language plpgsql as $$
begin
  return query
  insert into understudy.tasks
    (id, workspace_id, issue_id, agent_id, runtime_id, provider, status, move, trigger, priority)
  values
    (p_id, p_issue.workspace_id, p_issue.id, p_agent.id, p_agent.runtime_id, p_agent.provider,
     'queued', 'enqueue', p_trigger, p_issue.priority)
  on conflict (issue_id, agent_id) where status in ('queued', 'dispatched') do nothing
  returning *;
end $$;

-- R10.1. Outcomes: enqueued, assigned (a person, or the issue is in the backlog), unchanged,
-- pending (a task of this agent waits already), issue_not_found, agent_not_found.
create function understudy.assign_to_agent(p_workspace uuid, p_issue uuid, p_agent uuid, p_task uuid)
returns table (outcome text, task understudy.tasks) language plpgsql as $$
declare
  it understudy.issues;
  agent understudy.agents;
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
  if it.status = 'backlog' then
    outcome := 'assigned'; return next; return;
  end if;
  select * into task from understudy.enqueue_task(p_task, it, agent, 'assign');
  outcome := case when task.id is null then 'pending' else 'enqueued' end;
  return next;
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
  if was = 'backlog' and p_status = 'todo' and it.assignee_agent_id is not null then
    select * into agent from understudy.agents where id = it.assignee_agent_id and archived_at is null;
    select * into task from understudy.enqueue_task(p_task, it, agent, 'assign');
    outcome := case when task.id is null then 'pending' else 'enqueued' end;
  end if;
  return next;
end $$;

-- Up to one task per token for this runtime (R3.1 to R3.4, R3.11). `p_tokened` is false for
-- claimants that know no tokens (R3.6). The agents are locked first and in one order: skipping locked
-- tasks would not serialise the count, and two orders would deadlock.
create function understudy.claim_tasks(p_runtime uuid, p_tokens uuid[], p_tokened boolean, p_lease interval)
returns setof understudy.tasks language plpgsql as $$
declare
  place understudy.runtimes;
begin
  select * into place from understudy.runtimes where id = p_runtime;
  -- A claim proves that the runtime lives: only then do its expired claims go back (R3.8), to
  -- whichever runtimes the agent may use: this one may die, or have no room.
  update understudy.tasks t
    set status = 'queued', move = 'requeue', claim_token = null, claim_expires_at = null, dispatched_at = null,
        runtime_id = (select a.runtime_id from understudy.agents a where a.id = t.agent_id)
    where runtime_id = p_runtime and status = 'dispatched' and claim_expires_at <= understudy.now();
  perform 1 from understudy.agents
    where workspace_id = place.workspace_id and provider = place.provider and archived_at is null
    order by id for no key update;
  return query
  with room as materialized (
    select a.id, a.max_concurrent_tasks - (
        select count(*) from understudy.tasks f
        where f.agent_id = a.id and f.status in ('dispatched', 'running')) as free
    from understudy.agents a
    where a.workspace_id = place.workspace_id and a.provider = place.provider and a.archived_at is null
  ), chosen as materialized (
    select c.id, row_number() over (order by c.priority desc, c.created_at, c.id) as place_in_line
    from room cross join lateral (
      select t.id, t.priority, t.created_at from understudy.tasks t
      where t.agent_id = room.id and t.status = 'queued'
        and (t.runtime_id = p_runtime or t.runtime_id is null)
        and not exists (
          select from understudy.tasks f
          where f.agent_id = t.agent_id and f.issue_id = t.issue_id and f.status in ('dispatched', 'running'))
      order by t.priority desc, t.created_at, t.id
      limit greatest(0, least(room.free, cardinality(p_tokens)))
    ) c
    order by c.priority desc, c.created_at, c.id
    limit cardinality(p_tokens)
  )
  update understudy.tasks t
    set status = 'dispatched', move = 'claim', runtime_id = p_runtime,
        claim_token = case when p_tokened then p_tokens[chosen.place_in_line] end,
        claim_expires_at = understudy.now() + p_lease, dispatched_at = understudy.now()
    from chosen where t.id = chosen.id and t.status = 'queued'
    returning t.*;
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
    return query select * from understudy.refusal(
      p_workspace, p_task, p_token, array['completed', 'failed', 'cancelled']);
    return;
  end if;
  -- R10.3: an agent that said nothing says its final text.
  insert into understudy.comments (id, workspace_id, issue_id, author_agent_id, task_id, body)
    select p_comment, p_workspace, task.issue_id, task.agent_id, task.id, p_result ->> 'output'
    where task.issue_id is not null and coalesce(p_result ->> 'output', '') <> ''
      and not exists (select from understudy.comments c where c.task_id = p_task);
  update understudy.issues set status = 'in_review', updated_at = understudy.now()
    where id = task.issue_id and status = 'in_progress'
      and not exists (select from understudy.tasks o where o.issue_id = task.issue_id
                      and o.status in ('deferred', 'queued', 'dispatched', 'running'));
  outcome := 'moved'; return next;
end $$;

create function understudy.fail_task(
  p_workspace uuid, p_task uuid, p_token uuid, p_reason text, p_error text, p_session text, p_work_dir text
) returns table (outcome text, task understudy.tasks) language plpgsql as $$
begin
  perform 1 from understudy.issues i join understudy.tasks t on t.issue_id = i.id
    where t.id = p_task and t.workspace_id = p_workspace for no key update of i;
  update understudy.tasks
    set status = 'failed', move = 'fail', failure_reason = p_reason, error = p_error,
        completed_at = understudy.now(), claim_expires_at = null,
        session_id = coalesce(p_session, session_id), work_dir = coalesce(p_work_dir, work_dir)
    where id = p_task and workspace_id = p_workspace and status in ('dispatched', 'running')
      and claim_token is not distinct from p_token
    returning * into task;
  if not found then
    return query select * from understudy.refusal(
      p_workspace, p_task, p_token, array['completed', 'failed', 'cancelled']);
    return;
  end if;
  -- R5.6: nobody works on it any more.
  update understudy.issues set status = 'todo', updated_at = understudy.now()
    where id = task.issue_id and status = 'in_progress'
      and not exists (select from understudy.tasks o where o.issue_id = task.issue_id
                      and o.status in ('deferred', 'queued', 'dispatched', 'running'));
  outcome := 'moved'; return next;
end $$;

-- R5.8: stored the moment the agent reveals them.
create function understudy.pin_session(
  p_workspace uuid, p_task uuid, p_token uuid, p_session text, p_work_dir text
) returns table (outcome text, task understudy.tasks) language plpgsql as $$
begin
  update understudy.tasks
    set session_id = coalesce(p_session, session_id), work_dir = coalesce(p_work_dir, work_dir)
    where id = p_task and workspace_id = p_workspace and status in ('dispatched', 'running')
      and claim_token is not distinct from p_token
    returning * into task;
  if found then
    outcome := 'moved'; return next; return;
  end if;
  return query select * from understudy.refusal(p_workspace, p_task, p_token, '{}');
end $$;

create function understudy.set_progress(p_workspace uuid, p_task uuid, p_token uuid, p_progress jsonb)
returns table (outcome text, task understudy.tasks) language plpgsql as $$
begin
  update understudy.tasks set progress = p_progress
    where id = p_task and workspace_id = p_workspace and status = 'running'
      and claim_token is not distinct from p_token
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
  select * into task from understudy.tasks
    where id = p_task and workspace_id = p_workspace and status in ('dispatched', 'running')
      and claim_token is not distinct from p_token
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
  select * into task from understudy.tasks
    where id = p_task and workspace_id = p_workspace and status not in ('deferred', 'queued')
      and claim_token is not distinct from p_token
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
