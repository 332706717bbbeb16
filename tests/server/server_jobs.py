"""Fork server of reward servers and of their command line; see `tests.forking`."""

from tests.forking import exit_code, serve


def command_line(arguments: list[str]) -> int:
    """`reward-server` with arguments."""
    return exit_code(main, "reward-server", *arguments)


if __name__ == "__main__":
    # What a server imports on its way.
    import reward_server.api.grpc_api
    import reward_server.api.http_apps
    import reward_server.app
    import reward_server.commands.scoring
    import reward_server.commands.tables  # noqa: F401
    from reward_server.cli import main

    serve({"command_line": command_line})
