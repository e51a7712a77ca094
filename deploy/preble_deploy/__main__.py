"""`python -m preble_deploy` is `preble`, also where no program was installed."""

from preble_deploy.cli import main

if __name__ == "__main__":
    main()
