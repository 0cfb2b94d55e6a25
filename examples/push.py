from neds_hf.cli.main import run

if __name__ == "__main__":
    raise SystemExit(run("push"))
