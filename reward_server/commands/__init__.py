"""The commands of `reward-server` besides `serve`."""
