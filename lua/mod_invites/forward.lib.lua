-- Carries a command line of prosodyctl into the running server, and what it prints back, over the server's admin
-- socket. For storage that two processes cannot share: there the server has to do the work.
--
-- The client sends <input/> any number of times, then <run/>; the server answers with <output/> any number of times,
-- then <exit/>. All text is base64: it may hold anything.

local compat = module.compat;
local protected = module.protected;

local base64 = compat.lib("util.encodings").base64;
local st = compat.lib("util.stanza");

local xmlns = "urn:x-prosody-invites:command";
local CHUNK = 48 * 1024;

local forward = {};

--- in prosodyctl

local function socket_path()
	local configured = compat.lib("core.configmanager").get("*", "admin_socket");
	return compat.lib("util.paths").resolve_relative_path(prosody.paths.data, configured or "prosody.sock");
end

-- Has the server carry out the command line `arg` for a host, with the file `input` as its input. Ends this process
-- with the exit code that the server gives. Comes back with a reason if there is no server that listens.
--   sink.stdout(text), sink.stderr(text)   take what the command prints
--   sink.finish(code)                      is told the exit code, if it is there
function forward.ask(host, arg, input, sink)
	local has_adminstream, adminstream = protected.call(nil, compat.lib, "util.adminstream");
	if not has_adminstream then return nil, "this version of Prosody has no admin socket"; end -- COMPAT 0.11
	local client = adminstream.client();

	local function finish(code)
		if sink.finish then sink.finish(code); end
		os.exit(code);
	end

	local function give_up(why)
		sink.stderr("prosodyctl mod_invites: "..why.."\n");
		finish(1);
	end

	client.events.add_handler("connected", function ()
		local chunk = input and input:read(CHUNK);
		while chunk do
			client.send(st.stanza("input", { xmlns = xmlns }):text(base64.encode(chunk)));
			chunk = input:read(CHUNK);
		end
		local run = st.stanza("run", { xmlns = xmlns, host = host });
		for _, word in ipairs(arg) do
			run:tag("arg"):text(base64.encode(word)):up();
		end
		client.send(run);
		return true;
	end, 1);

	client.events.add_handler("received", function (stanza)
		if stanza.name == "output" then
			sink[stanza.attr.stream](base64.decode(stanza:get_text()));
		elseif stanza.name == "exit" then
			finish(tonumber(stanza.attr.code));
		else
			give_up(("the running server has no mod_invites on %s that could do this"):format(host));
		end
		return true;
	end, 1);

	client.events.add_handler("disconnected", function ()
		give_up("the server ended the connection");
	end, 1);

	local ok, err = adminstream.connection(socket_path(), client.listeners):connect();
	if not ok then return nil, ("its admin socket %s cannot be used: %s"):format(socket_path(), err); end
	compat.lib("net.server").loop();
	return give_up("the server did not answer");
end

-- Whether a server runs with this configuration.
function forward.is_server_running()
	local known, is_running = compat.lib("util.prosodyctl").isrunning();
	return known and is_running;
end

--- in the server

-- Lets `run(arg, input, sink)` carry out what is asked for this host: its exit code. `input` is a text, or nil.
function forward.serve(run)
	local function give_up(event, why)
		event.origin.send(st.stanza("output", { xmlns = xmlns, stream = "stderr" }):text(base64.encode(why)));
		event.origin.send(st.stanza("exit", { xmlns = xmlns, code = "1" }));
		return true;
	end

	local function not_understood(event)
		event.origin.has_failed = true; -- without a part of its input it must not be carried out
		return give_up(event, "prosodyctl mod_invites: the server did not understand the command; its log says why\n");
	end

	protected.hook_global("admin/"..xmlns..":input", function (event)
		local session = event.origin;
		session.invites_input = session.invites_input or {};
		table.insert(session.invites_input, base64.decode(event.stanza:get_text()));
		return true;
	end, nil, not_understood);

	protected.hook_global("admin/"..xmlns..":run", function (event)
		local session, stanza = event.origin, event.stanza;
		if stanza.attr.host ~= module.host then return; end
		if session.has_failed then return true; end
		local arg = {};
		for word in stanza:childtags("arg") do
			table.insert(arg, base64.decode(word:get_text()));
		end
		local function output(stream)
			return function (text)
				session.send(st.stanza("output", { xmlns = xmlns, stream = stream }):text(base64.encode(text)));
			end;
		end
		local input = session.invites_input and table.concat(session.invites_input);
		session.invites_input = nil;
		local ok, code = protected.call_at_once("A command of prosodyctl failed, which was told so", run, arg, input, {
			stdout = output("stdout"), stderr = output("stderr");
		});
		if not ok then return give_up(event, "prosodyctl mod_invites: "..code.."\n"); end
		session.send(st.stanza("exit", { xmlns = xmlns, code = ("%d"):format(code) }));
		return true;
	end, nil, not_understood);
end

return forward;
