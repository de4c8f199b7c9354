-- The commands of prosodyctl that take invites elsewhere and bring them in: export, import, backup, restore.

local compat = module.compat;

local transfer = {};

-- What keeps the invites of a host with another storage.
local ELSEWHERE = {
	memory = "in the memory of the server";
	postgresql = "in PostgreSQL, which pg_dump copies";
	prosody = "in Prosody's own storage, and are copied with that";
};

-- The database of all hosts, as the library wants to be told.
local function database()
	return { path = prosody.paths.data.."/invites.sqlite3"; lock_wait_ms = 10000 };
end

-- The commands, by name. `prosodyctl` has what they print with.
function transfer.commands(prosodyctl)
	local commands = {};

	-- A new file that only its owner may read: a function that writes to it, or nil and why not.
	function prosodyctl.new_file(native, name)
		local created, _, err = native.create_file(name);
		if not created then return nil, err; end
		local file;
		file, err = io.open(name, "wb");
		if not file then return nil, err; end
		return function (text)
			local written, write_err = file:write(text);
			if written then written, write_err = file:flush(); end
			if not written then error(write_err, 0); end
		end;
	end

	local function fail(why)
		-- What is wrong with the storage was told when it happened.
		if why then prosodyctl.complain(why); end
		return 1;
	end

	local function with_invites(command)
		return function (options, native)
			local invites, err = prosodyctl.invites_of(options.host);
			if not invites then return fail(err); end
			return command(invites, options, native);
		end;
	end

	local function export_to_bundled(invites, options)
		local count, err = invites.export_to_bundled();
		if not count then
			return fail(err ~= "internal-server-error" and "the bundled module's store cannot be written: "..err or nil);
		end
		prosodyctl.print(("%d pending invites of %s are now all that the bundled module has"):format(count, options.host));
		return 0;
	end

	commands.export = with_invites(function (invites, options, native)
		if options.to == "prosody" then return export_to_bundled(invites, options); end
		local write = prosodyctl.write;
		-- What the server prints, prosodyctl puts into the file.
		local is_to_file = options.output and prosody.process_type == "prosodyctl";
		if is_to_file then
			local write_to_file, err = prosodyctl.new_file(native, options.output);
			if not write_to_file then return fail(err); end
			write = write_to_file;
		end
		local count, _, text = invites.export_invites(options.pending, write);
		if not count then
			if is_to_file then os.remove(options.output); end
			return fail(text);
		end
		if is_to_file then
			prosodyctl.print(("%d invites of %s are in %s"):format(count, options.host, options.output));
		end
		return 0;
	end);

	commands.import = with_invites(function (invites, options)
		local done, _, text = invites.import_invites(not options.text and options.file or nil, options.text);
		if not done then return fail(text); end
		if done.wrong then
			for _, line in ipairs(done.wrong) do prosodyctl.complain(line); end
			return fail("nothing was imported");
		end
		for _, remark in ipairs(done.remarks) do prosodyctl.complain(remark); end
		prosodyctl.print(("%d invites imported for %s, %d were known"):format(done.imported, options.host, done.known));
		return 0;
	end);

	local function tell_what_is_elsewhere()
		local get = compat.lib("core.configmanager").get;
		for host in compat.lib("util.iterators").sorted_pairs(prosody.hosts) do
			local elsewhere = ELSEWHERE[get(host, "invite_storage")];
			if elsewhere and compat.lib("core.modulemanager").get_modules_for_host(host):contains(module.name) then
				prosodyctl.complain(("the invites of %s are %s"):format(host, elsewhere));
			end
		end
	end

	function commands.backup(options, native)
		tell_what_is_elsewhere();
		local done, _, text = native.back_up(database(), options.file);
		if not done then return fail(text); end
		prosodyctl.print("the database of all hosts is copied to "..options.file);
		return 0;
	end

	-- Asks whether to go on: whether to revoke what the backup holds, or nil if not.
	local function ask(native, options)
		if options.yes then return options.revoke_older; end
		if not native.is_terminal() then
			prosodyctl.complain("say --yes, and --revoke-older if nothing in the backup is to be good any more");
			return nil;
		end
		io.stderr:write(options.revoke_older and "Type yes to restore it, and revoke what is open in it: "
			or "Type yes to restore it, or revoke to restore it and revoke what is open in it: ");
		local answer = io.stdin:read("*l");
		if answer == "revoke" then return true; end
		if answer == "yes" then return options.revoke_older; end
		return nil;
	end

	local function put_back(backup, content, options, native)
		local newest = content.newest and os.date("%Y-%m-%d %H:%M:%S", content.newest) or "no time at all";
		prosodyctl.print(("%s knows of nothing after %s. %d invites are open in it."):format(
			options.file, newest, content.pending));
		if content.would_live_again then
			prosodyctl.print(("%d of them were used, revoked or have expired here since and would be good again.")
				:format(content.would_live_again));
			prosodyctl.print(("%d invites that are here now are not in it and would be gone."):format(content.would_be_gone));
		else
			prosodyctl.print("Those that were used since would be good again; the present database cannot be read.");
		end
		local revoke = ask(native, options);
		if revoke == nil then
			prosodyctl.complain("nothing was restored");
			return 1;
		end
		local restored, _, why = native.restore(database(), backup, revoke);
		if not restored then return fail(why); end
		prosodyctl.print(revoke and "restored; nothing in it is good any more" or "restored");
		return 0;
	end

	function commands.restore(options, native)
		tell_what_is_elsewhere();
		local backup, content, text = native.read_backup(database(), options.file);
		if not backup then return fail(text); end
		local code = put_back(backup, content, options, native);
		-- It has a copy in a file. Prosody 0.11 ends without collecting what is left over.
		native.discard_backup(backup);
		return code;
	end

	return commands;
end

return transfer;
