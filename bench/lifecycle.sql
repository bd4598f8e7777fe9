-- A task's life without Understudy's processes: claimed, started, told of, completed.
select id as task, claim_token as token
from understudy.claim_tasks(:runtime, array[gen_random_uuid()], 'full', '60 s') \gset
select outcome from understudy.start_task(:workspace, :task, :token);
select outcome from understudy.append_messages(:workspace, :task, :token, '[{"seq": 0, "type": "text", "content": "It is done."}]');
select outcome from understudy.complete_task(:workspace, :task, :token, '{"output": "It is done."}', null, null, gen_random_uuid());
